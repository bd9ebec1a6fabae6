"""A prepared split as one small file, and back: for a machine that has nothing else.

In or out: a zip, which holds for each image
- `<source>/<image_id>/image.webp`: (H, W, 3) uint8 RGB as lossless WebP, which takes grey in three equal channels for
  the price of one; `image.png` where a side is too long for it;
- `<source>/<image_id>/labels.png`: the label map (H, W), of 8 bits where its ids fit, else of 16;
and once `problems.csv`, as the split has it. The table of images does not travel: all its rows follow from these.

A pack that is read is as untrusted as any archive: `archive.py` looks at its entries, and no image is decoded whose
header promises too much.
"""

import re
import zipfile
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten
from pipeline.files import atomic_path
from pipeline.images.archive import list_entries, open_archive, read_entry
from pipeline.images.compact import compact_labels, expand_image
from pipeline.images.masks import Problem
from pipeline.images.raw import decode_image, decode_sized, to_rgb
from pipeline.images.source import PreparedImage, Source, describe_image
from pipeline.images.store import Pack
from pipeline.images.table import CURE, PROBLEM_COLUMNS, read_table
from pipeline.parallel import map_in_order
from pipeline.progress import track
from pipeline.tables import check_image_id, read_csv_table

_WEBP, _PNG, _LABELS, _PROBLEMS = "image.webp", "image.png", "labels.png", "problems.csv"
_ENTRY = re.compile(
    rf"(?P<source>[^/]+)/(?P<image_id>[^/]+)/(?P<name>{'|'.join(map(re.escape, (_WEBP, _PNG, _LABELS)))})"
)
_SOURCE = re.compile("[A-Za-z0-9_-]+")  # as a key of data.sources
_LONGEST_WEBP_SIDE = 2**14 - 1  # px; what libwebp writes
_LOSSLESS = [cv2.IMWRITE_WEBP_QUALITY, 101]  # what OpenCV takes for it: anything above 100
_SMALL = [cv2.IMWRITE_PNG_COMPRESSION, 9]  # a third less than OpenCV's own choice
# The time that every entry carries, so that equal splits give equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PROBLEM_TYPES: dict[str, type] = {column: int if column == "value" else str for column in PROBLEM_COLUMNS}
_PACK_AGAIN = "write it anew by `python -m pipeline pack`"


class _PackedImage(NamedTuple):
    """One image as it lies in a pack: the bytes of its files, those of the labels None where they are not wanted."""

    archive: str  # for messages
    source: str
    image_id: str
    image_name: str
    image: bytes
    labels: bytes | None
    problems: list[Problem]

    def where(self, name: str) -> str:
        """Return what messages call a file of the image."""
        return f"{self.archive}: {self.source}/{self.image_id}/{name}"


class _ImageToPack(NamedTuple):
    """One image of a prepared split: image and label map as they are stored, its row of the table, its problems."""

    archive: str
    image: NDArray[np.uint8]
    label_map: NDArray[Any]
    row: dict[str, Any]
    problems: list[Problem]


def write_packed(folder: Path, path: Path, workers: int) -> int:
    """Write the training split that `prepare` wrote to `folder` as one file, and return how many images it has.

    Equal splits give equal bytes, whatever the number of `workers`, the processes that encode. Nothing is written that
    would not be read back as it was: every image is decoded again, and every row of the tables is compared.

    Raises:
        InputError: a file of the split is missing, damaged or at odds with the others, its images differ in `scored` or
            `weight`, or a name cannot be in a zip.
    """
    table, pack = read_table(folder), Pack(folder / "images.npz")
    problems = _read_sorted_problems(folder / _PROBLEMS)
    by_image = _group_problems(problems)
    if unknown := sorted(by_image.keys() - set(table["image_id"])):
        raise InputError(f"{folder / _PROBLEMS}: the image {unknown[0]!r} is not in table.csv; {CURE}")
    if len(standings := table.groupby(["scored", "weight"])["source"].first()) > 1:
        raise InputError(
            f"{folder / 'table.csv'}: its sources {standings.iloc[0]} and {standings.iloc[1]} differ in `scored` or "
            "`weight`, which a pack as a whole has; prepare and pack each alone, and name both packs in data.sources"
        )
    rows = table.sort_values(["source", "image_id"]).to_dict("records")
    jobs = (
        _ImageToPack(
            str(path),
            _take_array(pack, f"{row['image_id']}.image", row),
            _take_array(pack, f"{row['image_id']}.label_map", row),
            {str(column): value for column, value in row.items()},
            by_image.get(row["image_id"], []),
        )
        for row in rows
    )
    with atomic_path(path) as partial_path, zipfile.ZipFile(partial_path, "w", zipfile.ZIP_STORED) as archive:
        archive.filename = str(path)  # the file that messages are about
        for packed in track(map_in_order(_encode_image, jobs, workers), f"pack {folder}", len(rows)):
            start = f"{packed.source}/{packed.image_id}"
            archive.writestr(zipfile.ZipInfo(f"{start}/{packed.image_name}", _EPOCH), packed.image)
            archive.writestr(zipfile.ZipInfo(f"{start}/{_LABELS}", _EPOCH), packed.labels or b"")
        archive.writestr(zipfile.ZipInfo(_PROBLEMS, _EPOCH), _format_problems(problems))
        if len(found := _index_pack(archive, labelled=True)) != len(rows):  # an id like `a/b`
            raise InputError(f"{path}: only {len(found)} of {len(rows)} ids can be a folder's name; rename the others")
    return len(rows)


def read_packed(source: Source) -> Iterator[PreparedImage]:
    """Yield the images of a pack, sorted by their source and then by image_id; each row names its source.

    What it holds is cleaned already: `min_fragment_px` and `allow_unlabelled` change nothing. Without `labelled`,
    neither labels nor problems are read.

    Raises:
        InputError: the pack or anything in it has a structural fault, or labels are given beside it.
    """
    if source.labels is not None:
        raise InputError(
            f"params.yaml: {source.section}.labels is {source.labels.name}, but the layout `packed` has its labels in "
            "the archive; set it to null"
        )
    with open_archive(source.archive) as archive:
        images = _index_pack(archive, source.labelled)
        problems = _read_problems(archive, images, source.max_pixels) if source.labelled else {}

        def read(place: tuple[str, str]) -> _PackedImage:
            start, name = "/".join(place), images[place]
            image = read_entry(archive, f"{start}/{name}", source.max_pixels)
            labels = read_entry(archive, f"{start}/{_LABELS}", source.max_pixels) if source.labelled else None
            return _PackedImage(str(source.archive), *place, name, image, labels, problems.get(place[1], []))

        decoded = map_in_order(partial(_decode_image, max_pixels=source.max_pixels), map(read, images), source.workers)
        yield from track(decoded, f"prepare {source.archive.name}", len(images))


def _take_array(pack: Pack, name: str, row: Mapping[Hashable, Any]) -> NDArray[Any]:
    """Return an array of a prepared split, which must be what its row of the table says."""
    if name not in pack:
        raise InputError(f"{pack.path}: no {name!r} in it; give the folder of a training split, or {CURE}")
    array, shape = pack[name], (row["height"], row["width"])
    is_image = array.shape in ((*shape, 1), (*shape, 3)) and array.dtype == np.uint8
    is_label_map = array.shape == shape and array.dtype in (np.uint8, np.uint16)
    if not (is_image if name.endswith(".image") else is_label_map):
        raise InputError(f"{pack.path}: {name!r} is {array.shape} {array.dtype}, and table.csv says {shape}; {CURE}")
    return array


def _encode_image(job: _ImageToPack) -> _PackedImage:
    """Encode an image, and make sure that decoding gives it back, and with it its row of the table."""
    (height, width), image = job.image.shape[:2], expand_image(job.image)
    name, options = (_WEBP, _LOSSLESS) if max(height, width) <= _LONGEST_WEBP_SIDE else (_PNG, _SMALL)
    packed = _PackedImage(
        job.archive,
        job.row["source"],
        job.row["image_id"],
        name,
        cv2.imencode(Path(name).suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes(),
        cv2.imencode(".png", compact_labels(job.label_map), _SMALL)[1].tobytes(),
        job.problems,
    )
    again = _decode_image(packed, height * width)
    came_back = (again.image, image), (again.stored_labels, job.label_map)
    if not all(array is not None and np.array_equal(array, packed_array) for array, packed_array in came_back):
        raise InputError(
            f"{packed.where(name)}: does not come back as it was from OpenCV {cv2.__version__}; install the version "
            "that constraints.txt names"
        )
    # Whether an image is scored, and how often it is drawn, says the source that reads the pack.
    if odd := [column for column, value in job.row.items() if again.row.get(column, value) != value]:
        raise InputError(
            f"table.csv: image {packed.image_id!r} has {odd[0]} {job.row[odd[0]]!r}, but its image, label map and "
            f"problems make {again.row[odd[0]]!r}; {CURE}"
        )
    return packed


def _decode_image(packed: _PackedImage, max_pixels: int) -> PreparedImage:
    """Decode an image and its label map, and describe them in a row that has its source.

    Raises:
        InputError: a file does not decode or promises more than `max_pixels`; the labels are no label map of the image;
            a problem has more pixels than it.
    """
    where = packed.where(packed.image_name)
    decode = _decode_webp if packed.image_name == _WEBP else decode_image
    image = to_rgb(decode(packed.image, where, max_pixels))
    height, width = image.shape[:2]
    label_map: NDArray[np.uint16] | None = None
    if packed.labels is not None:
        label_map = _decode_labels(packed.labels, packed.where(_LABELS), (height, width), max_pixels)
    if (most := max((problem.value for problem in packed.problems), default=0)) > height * width:
        raise InputError(
            f"{packed.archive}: {_PROBLEMS}: image {packed.image_id!r} has a problem of {most} px, and is of "
            f"{height} x {width} px; {_PACK_AGAIN}"
        )
    described = describe_image(packed.image_id, image, label_map, packed.problems)
    return replace(described, row={"source": packed.source, **described.row})


def _decode_webp(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Decode a lossless WebP to (H, W, 3) uint8 RGB after a look at the size in its header.

    The header: sections 2.6 and 3.4 of RFC 9649. What is lossy, or has an alpha channel, frames or metadata, is
    refused: `write_packed` writes none.
    """
    if len(data) < 25 or (data[:4], data[8:16], data[20]) != (b"RIFF", b"WEBPVP8L", 0x2F):
        raise InputError(f"{name}: no lossless WebP ({data[:16]!r}); {_PACK_AGAIN}")
    bits = int.from_bytes(data[21:25], "little")
    array = decode_sized(data, name, ((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1), max_pixels)
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"{name}: decodes to {array.shape} {array.dtype}, not to RGB; {_PACK_AGAIN}")
    return array


def _decode_labels(data: bytes, name: str, shape: tuple[int, int], max_pixels: int) -> NDArray[np.uint16]:
    """Decode a label map (H, W): 0 background, 1..N."""
    labels = decode_image(data, name, max_pixels)
    if labels.shape != shape:
        raise InputError(
            f"{name}: a label map of {' x '.join(map(str, labels.shape))} px for an image of {shape[0]} x {shape[1]} "
            f"px; {_PACK_AGAIN}"
        )
    counts = np.bincount(labels.ravel())
    if (absent := np.flatnonzero(counts[1:] == 0) + 1).size:
        raise InputError(f"{name}: ids up to {len(counts) - 1} without {absent[0]}; {_PACK_AGAIN}")
    return labels.astype(np.uint16)


def _index_pack(archive: zipfile.ZipFile, labelled: bool) -> dict[tuple[str, str], str]:
    """Return (source, image_id) -> the name of its image's file, in order; other entries (a README) are passed over."""
    names: dict[tuple[str, str], set[str]] = {}
    for entry in list_entries(archive):
        if match := _ENTRY.fullmatch(entry):
            names.setdefault((match["source"], match["image_id"]), set()).add(match["name"])
    if not names:
        raise InputError(f"{archive.filename}: no <source>/<image_id>/{_WEBP} in it; is it the right archive?")
    images = {}
    for (source, image_id), found in sorted(names.items()):
        where = f"{archive.filename}: {source}/{image_id}"
        check_image_id(image_id, where)
        if not _SOURCE.fullmatch(source):
            raise InputError(f"{where}: the source {source[:60]!r} has more than A-Z a-z 0-9 _ -; rename its folder")
        if len(formats := found - {_LABELS}) != 1:
            number = "two images" if formats else "labels without an image"
            raise InputError(f"{where}: {number}; keep one of {_WEBP} and {_PNG}, or {_PACK_AGAIN}")
        if labelled and _LABELS not in found:
            raise InputError(f"{where}: no {_LABELS}, which images to learn from need; {_PACK_AGAIN}")
        images[source, image_id] = formats.pop()
    return images


def _read_problems(
    archive: zipfile.ZipFile, images: Mapping[tuple[str, str], str], max_pixels: int
) -> dict[str, list[Problem]]:
    """Return image_id -> the problems of an image, as the pack's table has them."""
    path = Path(f"{archive.filename}: {_PROBLEMS}")  # for messages
    if _PROBLEMS not in archive.NameToInfo:
        raise InputError(f"{path}: not in it; {_PACK_AGAIN}")
    try:
        text = read_entry(archive, _PROBLEMS, max_pixels).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a readable table of problems ({shorten(error)}); {_PACK_AGAIN}") from error
    table = read_csv_table(path, _PROBLEM_TYPES, _PACK_AGAIN, "table of problems", text)
    if unknown := sorted(set(table["image_id"]) - {image_id for _, image_id in images}):
        raise InputError(f"{path}: no image {unknown[0]!r} in the pack; {_PACK_AGAIN}")
    return _group_problems(table)


def _read_sorted_problems(path: Path) -> pd.DataFrame:
    """Read the problems of a prepared split, columns as in `PROBLEM_COLUMNS`, so that the file can be written again."""
    problems = read_csv_table(path, _PROBLEM_TYPES, CURE, "table of problems")
    if not problems["image_id"].is_monotonic_increasing or _format_problems(problems) != path.read_bytes():
        raise InputError(f"{path}: not as the stage `prepare` writes it; {CURE}")
    return problems


def _format_problems(problems: pd.DataFrame) -> bytes:
    """Return the table as `prepare` writes it."""
    return problems.to_csv(index=False, lineterminator="\n").encode()


def _group_problems(table: pd.DataFrame) -> dict[str, list[Problem]]:
    grouped: dict[str, list[Problem]] = {}
    for image_id, *values in table.itertuples(index=False, name=None):
        grouped.setdefault(image_id, []).append(Problem(*values))
    return grouped
