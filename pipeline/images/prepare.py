"""An archive to a prepared split: a pack of images and label maps, a table of images, a table of problems.

In: a competition zip, or a stack of serial sections. Out: `images.npz`, `table.csv`, `problems.csv` in one folder. A
zip's images are decoded in processes, each of which reads the zip itself; at most a few per process are in memory at a
time.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.images.archive import ArchiveImage, index_archive, open_archive, read_entry
from pipeline.images.image_type import classify_image_type
from pipeline.images.mask_png import UsedRows, decode_used_rows
from pipeline.images.raw import Mask, Problem, crop_mask, decode_image, merge_masks, to_rgb
from pipeline.images.stack import read_stack
from pipeline.images.store import PackWriter
from pipeline.images.table import PROBLEM_COLUMNS, TABLE_COLUMNS
from pipeline.parallel import map_in_order
from pipeline.params import DataParams
from pipeline.progress import track


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready to be stored: (H, W, 3) uint8, (H, W) uint16 or None in a test set, and its row."""

    image_id: str
    image: NDArray[np.uint8]
    label_map: NDArray[np.uint16] | None
    row: dict[str, Any]
    problems: list[Problem]


def prepare_image(archive: zipfile.ZipFile, entry: ArchiveImage, labelled: bool, params: DataParams) -> PreparedImage:
    """Read one image and its masks.

    Raises:
        InputError: a file does not decode, or a mask's size is not its image's.
    """
    image = to_rgb(
        decode_image(read_entry(archive, entry.image_entry, params.max_pixels), entry.image_entry, params.max_pixels)
    )
    label_map: NDArray[np.uint16] | None = None
    problems: list[Problem] = []
    if labelled:
        masks = (_read_mask(archive, name, image.shape[:2], params) for name in entry.mask_entries)
        label_map, problems = merge_masks(masks, image.shape[:2], params.min_fragment_px)
    return PreparedImage(
        entry.image_id, image, label_map, describe_image(entry.image_id, image, label_map, problems), problems
    )


def describe_image(
    image_id: str, image: NDArray[np.uint8], label_map: NDArray[np.uint16] | None, problems: list[Problem]
) -> dict[str, Any]:
    """Return an image's row of the table, with the columns of `TABLE_COLUMNS`."""
    areas = np.bincount(label_map.ravel())[1:] if label_map is not None else np.zeros(0, int)
    found = {kind: [p.value for p in problems if p.problem == kind] for kind in {p.problem for p in problems}}
    return {
        "image_id": image_id,
        "height": image.shape[0],
        "width": image.shape[1],
        "nuclei": len(areas),
        "median_area_px": float(np.median(areas)) if len(areas) else 0.0,
        "image_type": classify_image_type(image),
        "empty_masks": len(found.get("empty", ())),
        "overlap_px": sum(found.get("overlap", ())),
        "covered_masks": len(found.get("covered", ())),
        "dropped_specks": len(found.get("speck", ())),
        "fragments": len(found.get("fragment", ())),
        "filled_holes": len(found.get("hole", ())),
    }


def _read_mask(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], params: DataParams) -> Mask:
    data = read_entry(archive, name, params.max_pixels)
    used = decode_used_rows(data, params.max_pixels)
    if used is None:
        array = decode_image(data, name, params.max_pixels)
        used = UsedRows(array, 0, array.shape[:2])
    if used.shape != shape:
        raise InputError(
            f"{archive.filename}: {name}: a mask of {used.shape[0]} x {used.shape[1]} px "
            f"for an image of {shape[0]} x {shape[1]} px; replace the mask"
        )
    return crop_mask(used.rows, name.rsplit("/", 1)[-1].rsplit(".", 1)[0], used.top)


def prepare_archive(path: Path | None, folder: Path, labelled: bool, params: DataParams) -> pd.DataFrame:
    """Write the split in the archive or stack at `path` (None: an empty split) to `folder`, and return its table.

    Raises:
        InputError: the archive or anything in it has a structural fault.
    """
    read_all = _prepare_stack if params.layout == "stack" else _prepare_all
    rows, problems = [], []
    with PackWriter(folder / "images.npz") as pack:
        for prepared in read_all(path, labelled, params) if path else ():
            pack.add(f"{prepared.image_id}.image", prepared.image)
            if prepared.label_map is not None:
                pack.add(f"{prepared.image_id}.label_map", prepared.label_map)
            rows.append(prepared.row)
            problems += [(prepared.image_id, p.mask_id, p.problem, p.value, p.handling) for p in prepared.problems]
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS)).astype(TABLE_COLUMNS)
    table.to_csv(folder / "table.csv", index=False, lineterminator="\n")
    pd.DataFrame(problems, columns=list(PROBLEM_COLUMNS)).to_csv(
        folder / "problems.csv", index=False, lineterminator="\n"
    )
    return table


def _prepare_all(path: Path, labelled: bool, params: DataParams) -> Iterator[PreparedImage]:
    with open_archive(path) as archive:
        entries = index_archive(archive, labelled, params.allow_unlabelled)
    jobs = [(path, entry, labelled, params) for entry in entries]
    try:
        yield from track(map_in_order(_prepare_job, jobs, params.workers), f"prepare {path.name}", len(jobs))
    finally:
        _open_once.cache_clear()  # one worker is this process, and another file may come to lie at this path


def _prepare_stack(path: Path, labelled: bool, params: DataParams) -> Iterator[PreparedImage]:
    labels = None if params.labels == "none" else path.parent / params.labels
    for image_id, image, label_map in track(read_stack(path, labels, labelled, params), f"prepare {path.name}"):
        yield PreparedImage(image_id, image, label_map, describe_image(image_id, image, label_map, []), [])


@lru_cache(maxsize=1)
def _open_once(path: Path) -> zipfile.ZipFile:
    """Keep the archive open between the jobs of a process: its directory has an entry per mask."""
    return open_archive(path)


def _prepare_job(job: tuple[Path, ArchiveImage, bool, DataParams]) -> PreparedImage:
    path, entry, labelled, params = job
    return prepare_image(_open_once(path), entry, labelled, params)


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
