"""Archives to a prepared split: a pack of images and label maps, a table of images, a table of problems.

In: sources, as `data` names them. Out: `images.npz`, `table.csv`, `problems.csv` in one folder; `PreparedSplit` reads
it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.errors import InputError
from pipeline.housekeeping import HousekeepingParams
from pipeline.images.archive import index_archive, open_archive, read_entry
from pipeline.images.layouts import ReadLayout, find_layout
from pipeline.images.raw import decode_image
from pipeline.images.source import Source, locate_file
from pipeline.images.store import PackWriter
from pipeline.images.table import PROBLEM_COLUMNS, TABLE_COLUMNS
from pipeline.params import ArchiveParams, DataParams, SourceParams
from pipeline.progress import track


class _Opened(NamedTuple):
    """A source, what the rows of its images say of it, and what reads it."""

    columns: dict[str, Any]
    read: ReadLayout
    source: Source


def prepare_split(
    sources: Mapping[str, ArchiveParams],
    archives: Path,
    folder: Path,
    labelled: bool,
    data: DataParams,
    housekeeping: HousekeepingParams,
) -> pd.DataFrame:
    """Write the images of all sources (of none: an empty split) to `folder`, and return its table.

    Args:
        sources: by name, which the table's column `source` holds where the archive does not say it itself; their order
            in params.yaml changes nothing. Images to learn from are of `SourceParams`.
        archives: the folder that their files lie in.
        folder: to write to.
        labelled: whether the images are there to learn from.
        data: what is made of faults.
        housekeeping: `workers` and `max_pixels`.

    Raises:
        InputError: a layout is unknown, a file lies outside of `archives`, an archive or anything in it has a
            structural fault, or two images have one id.
    """
    # All of params.yaml is looked at before the first archive is read.
    opened = [_open_source(name, sources[name], archives, labelled, data, housekeeping) for name in sorted(sources)]
    with PackWriter(folder / "images.npz") as pack:
        rows, problems = _store_images(opened, pack)
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS)).astype(TABLE_COLUMNS)
    for name, content in (
        ("table.csv", table),
        ("problems.csv", pd.DataFrame(problems, columns=list(PROBLEM_COLUMNS))),
    ):
        content.to_csv(folder / name, index=False, lineterminator="\n")
    return table


def _store_images(opened: Iterable[_Opened], pack: PackWriter) -> tuple[list[dict[str, Any]], list[Any]]:
    """Read all sources into the pack, and return the rows of the images and of the problems, sorted by image_id."""
    rows: dict[str, dict[str, Any]] = {}
    problems: dict[str, list[Any]] = {}
    for columns, read, source in opened:
        for prepared in read(source):
            image_id = prepared.image_id
            if image_id in rows:
                raise InputError(
                    f"{source.archive}: the image {image_id} is in the source {rows[image_id]['source']} too; rename "
                    "or remove one of them"
                )
            rows[image_id] = {**columns, **prepared.row}  # a row that names its source keeps it
            problems[image_id] = [(image_id, p.mask_id, p.problem, p.value, p.handling) for p in prepared.problems]
            pack.add(f"{image_id}.image", prepared.stored_image)
            if prepared.stored_labels is not None:
                pack.add(f"{image_id}.label_map", prepared.stored_labels)
    image_ids = sorted(rows)
    return [rows[image_id] for image_id in image_ids], [row for image_id in image_ids for row in problems[image_id]]


def _open_source(
    name: str,
    params: ArchiveParams,
    archives: Path,
    labelled: bool,
    data: DataParams,
    housekeeping: HousekeepingParams,
) -> _Opened:
    """Find what reads a source, and where its files lie."""
    section = f"data.sources.{name}" if labelled else "data.test"
    columns: dict[str, Any] = {"source": name, "scored": 0, "weight": 0.0}  # as of a test set
    if isinstance(params, SourceParams):
        columns |= {"scored": int(params.scored), "weight": params.weight}
    source = Source(
        section=section,
        archive=locate_file(archives, params.archive, f"{section}.archive"),
        labels=None if params.labels is None else locate_file(archives, params.labels, f"{section}.labels"),
        labelled=labelled,
        allow_unlabelled=data.allow_unlabelled,
        min_fragment_px=data.min_fragment_px,
        max_pixels=housekeeping.max_pixels,
        workers=housekeeping.workers,
    )
    return _Opened(columns, find_layout(params.layout, section), source)


def read_sizes(path: Path, max_pixels: int) -> dict[str, tuple[int, int]]:
    """Return image_id -> (height, width) of a test archive's images, in px.

    Raises:
        InputError: the archive or an image of it has a structural fault.
    """
    sizes = {}
    with open_archive(path) as archive:
        for entry in track(index_archive(archive, labelled=False, allow_unlabelled=True), f"read {path.name}"):
            data = read_entry(archive, entry.image_entry, max_pixels)
            sizes[entry.image_id] = decode_image(data, entry.image_entry, max_pixels).shape[:2]
    return sizes
