"""The competition's CSV files: written, read, checked and scored.

In: label maps, or a submission `ImageId,EncodedPixels` with a row per nucleus and, for an image without any, one row
with an empty text; Kaggle's solution `ImageId,EncodedPixels,Height,Width,Usage`. Out: a file, or what is wrong with it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.nuclei.metric import THRESHOLDS_PERCENT, Matches, Overlap, average_precision, match_overlap
from pipeline.nuclei.rle import decode_pixels, encode_label_map, paint_nucleus

_COLUMNS = ("ImageId", "EncodedPixels")
_SOLUTION_COLUMNS = (*_COLUMNS, "Height", "Width", "Usage")
# Bounds that keep what a few bytes can ask for to some gigabytes; the competition's largest image has 1.4 million
# pixels and a few hundred nuclei.
_MAX_PIXELS = 50_000_000  # of an image in a solution; as many as data.max_pixels lets an image have
_MAX_PAIRS = 2**26  # true nuclei times predicted ones of an image
_MAX_COVER = 16  # how many times an image's area its true masks may have together; they hardly overlap
_LONGEST_ID = 512  # characters, as of a name in an archive
_IGNORED = "ignored"  # the Usage, in lower case, of rows that Kaggle does not score

Shape = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """One nucleus, or with an empty text none, and where the file says so."""

    line: int  # counted from 1, the header's
    text: str  # the runs


@dataclass(frozen=True)
class Truth:
    """The true nuclei of one image."""

    shape: Shape
    rows: list[Row]


@dataclass(frozen=True)
class SubmissionScore:
    """A submission against a solution."""

    table: pd.DataFrame  # image_id, ap, ap50 .. ap95; a row per scored image, sorted by image_id
    mean: float  # of ap over images, the competition's score
    not_scored: int  # images of the submission for which the solution has no scored row


def write_submission(path: Path, items: Iterable[tuple[str, NDArray[np.integer]]]) -> None:
    """Write one row per nucleus, image by image; memory does not grow with their number.

    Args:
        path: the CSV to write, atomically.
        items: (image_id, label_map (H, W) integers) in strictly ascending order of image_id.

    Raises:
        InputError: an image_id is out of order, comes twice, or cannot stand in a CSV.
    """
    previous = ""
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(_COLUMNS) + "\n")
        for image_id, label_map in items:
            if not image_id or image_id != image_id.strip() or set(image_id) & set(',"\r\n') or not _is_utf8(image_id):
                raise InputError(f"image_id {image_id!r} cannot stand in {path.name}; rename the image")
            if image_id <= previous:
                raise InputError(f"image {image_id} comes after {previous}; give each image once, sorted by image_id")
            previous = image_id
            file.writelines(f"{image_id},{text}\n" for text in encode_label_map(label_map) or [""])


def read_submission(path: Path) -> dict[str, list[Row]]:
    """Read a submission; rows of one image may stand anywhere.

    Returns:
        The rows of each image, in the file's order; one row with an empty text where nothing was found.

    Raises:
        InputError: the file is missing, is not UTF-8, has other columns, an image_id is empty, or a row comes twice or
            says that there is no nucleus beside others of its image.
    """
    images: dict[str, list[Row]] = {}
    for line, (image_id, text) in _read_lines(path, _COLUMNS):
        images.setdefault(image_id, []).append(Row(line, text.strip()))
    for image_id, rows in images.items():
        seen: dict[str, int] = {}
        for row in rows:
            if row.text in seen:
                raise _fault(path, row.line, f"image {image_id}: the same row as line {seen[row.text]}; drop one")
            seen[row.text] = row.line
        if "" in seen and len(rows) > 1:
            raise _fault(path, seen[""], f"image {image_id}: an empty row beside others; drop it")
    return images


def read_label_maps(path: Path, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (image_id, label_map (H, W) int32) of the images in `shapes`, from a CSV in the form of a submission.

    Raises:
        InputError: as `validate_submission`, for these images.
    """
    images = read_submission(path)
    _refuse_missing(path, images, shapes)
    for image_id, (height, width) in shapes.items():
        columns = _decode_rows(path, image_id, images[image_id], (height, width))
        yield image_id, np.ascontiguousarray(columns.reshape(width, height).T)


def validate_submission(path: Path, shapes: Mapping[str, Shape]) -> int:
    """Check that Kaggle will take a submission, and return the number of its nuclei.

    Args:
        path: the CSV.
        shapes: (H, W) of every test image.

    Raises:
        InputError: as `read_submission`; or an image is unknown or missing, runs are malformed, unsorted or out of
            bounds, or a pixel lies in two nuclei. The message names the line.
    """
    images = read_submission(path)
    for image_id, rows in images.items():
        if image_id not in shapes:
            raise _fault(
                path, rows[0].line, f"image {image_id} is not in the test set; drop its rows, or name the right archive"
            )
    _refuse_missing(path, images, shapes)
    for image_id, rows in images.items():
        _decode_rows(path, image_id, rows, shapes[image_id])
    return sum(bool(row.text) for rows in images.values() for row in rows)


def read_solution(path: Path) -> dict[str, Truth]:
    """Read Kaggle's solution without the rows whose Usage is Ignored.

    Returns:
        The truth of every image that is scored; an image all of whose rows are ignored is left out.

    Raises:
        InputError: the file is missing, is not UTF-8, has other columns, or an image's sizes are no positive numbers,
            differ from row to row, or make an image that is absurdly large.
    """
    truths: dict[str, Truth] = {}
    for line, (image_id, text, height, width, usage) in _read_lines(path, _SOLUTION_COLUMNS, any_order=True):
        if usage.strip().lower() == _IGNORED:
            continue
        shape = (_parse_size(path, line, height), _parse_size(path, line, width))
        if shape[0] * shape[1] > _MAX_PIXELS:
            raise _fault(path, line, f"image {image_id} is {shape}; no more than {_MAX_PIXELS} pixels; mend the sizes")
        truth = truths.setdefault(image_id, Truth(shape, []))
        if truth.shape != shape:
            raise _fault(path, line, f"image {image_id} is {shape} here and {truth.shape} above; mend the sizes")
        if text.strip():
            truth.rows.append(Row(line, text.strip()))
    return truths


def score_submission(submission_path: Path, solution_path: Path) -> SubmissionScore:
    """Score a submission as the competition does.

    Images that the solution does not score (stage 2 hid the scored ones among thousands) are counted and passed over.

    Raises:
        InputError: as `read_submission` and `read_solution`; a scored image is missing from the submission, its runs
            are wrong, or the solution scores no image.
    """
    truths, images = read_solution(solution_path), read_submission(submission_path)
    if not truths:
        raise InputError(f"{solution_path}: no row is scored; every Usage is Ignored, or the file has no rows")
    _refuse_missing(submission_path, images, truths)
    rows = []
    for image_id, truth in sorted(truths.items()):
        columns = _decode_rows(submission_path, image_id, images[image_id], truth.shape)
        precision = average_precision(_match_rows(solution_path, image_id, truth, columns))
        rows.append((image_id, precision.mean(), *precision))
    table = pd.DataFrame(rows, columns=["image_id", "ap", *(f"ap{percent}" for percent in THRESHOLDS_PERCENT)])
    return SubmissionScore(table, float(table["ap"].mean()), len(images.keys() - truths.keys()))


def _match_rows(path: Path, image_id: str, truth: Truth, columns: NDArray[np.int32]) -> Matches:
    """Match true masks, of which some overlap by a few pixels in Kaggle's files, with a prediction (H * W,).

    The overlap table is counted from the list of the masks' pixels, so that a pixel counts in every mask that has it.
    """
    n_columns = int(columns.max(initial=0)) + 1
    if len(truth.rows) * n_columns > _MAX_PAIRS:
        raise InputError(
            f"{path}: image {image_id}: {len(truth.rows)} true nuclei and {n_columns - 1} predicted ones, more than "
            f"{_MAX_PAIRS} pairs; split the image"
        )
    table = np.zeros((len(truth.rows), n_columns), dtype=np.int64)
    covered = 0
    for index, row in enumerate(truth.rows):
        try:
            pixels = decode_pixels(row.text, truth.shape)
        except InputError as error:
            raise _fault(path, row.line, f"image {image_id}: {error}") from error
        covered += pixels.size
        if covered > _MAX_COVER * columns.size:
            raise _fault(path, row.line, f"image {image_id}: its masks cover it {_MAX_COVER} times; mend the masks")
        table[index] = np.bincount(columns[pixels], minlength=n_columns)
    prediction_areas = np.bincount(columns, minlength=1)[1:]
    return match_overlap(Overlap(table.sum(axis=1), prediction_areas, table[:, 1:]))


def _decode_rows(path: Path, image_id: str, rows: list[Row], shape: Shape) -> NDArray[np.int32]:
    """Return the labels of an image column by column, (H * W,) int32; each row that has runs is a nucleus."""
    columns = np.zeros(shape[0] * shape[1], dtype=np.int32)
    for label, row in enumerate(rows, start=1):
        try:
            paint_nucleus(columns, row.text, shape, label)
        except InputError as error:
            raise _fault(path, row.line, f"image {image_id}: {error}") from error
    return columns


def _refuse_missing(path: Path, images: Mapping[str, list[Row]], wanted: Iterable[str]) -> None:
    missing = sorted(set(wanted) - images.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{path}: no row for image {missing[0]}{more}; an image without nuclei has one empty row")


def _read_lines(path: Path, columns: tuple[str, ...], any_order: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values in the order of `columns`) below the header.

    Ids and runs need no quoting, so a line is a row. Only what others made may have its columns in `any_order`.
    """
    try:
        # Spreadsheets put a byte order mark first, which utf-8-sig drops, and end lines in their own ways.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give a CSV file") from error
    except UnicodeDecodeError as error:
        broken = error.object.count(b"\n", 0, error.start) + 1
        raise _fault(path, broken, f"not UTF-8 at byte {error.start}; save it as plain UTF-8 text") from error
    except ValueError as error:  # a path that can be none
        raise InputError(f"{path}: cannot be read ({error}); give a CSV file") from error
    lines = text.rstrip("\n").split("\n")
    header = _split(lines[0])
    if tuple(header) != columns and not (any_order and sorted(header) == sorted(columns)):
        raise _fault(path, 1, f"the columns are {','.join(header)[:200]!r}; they must be {','.join(columns)!r}")
    for number, line in enumerate(lines[1:], start=2):
        values = _split(line)
        if '"' in line and any('"' in value for value in values):
            raise _fault(path, number, f"{line[:60]!r} has a quote that nothing closes; drop it")
        if len(values) != len(columns) or not 0 < len(values[header.index(columns[0])]) <= _LONGEST_ID:
            raise _fault(path, number, f"{line[:60]!r} is no row of {','.join(columns)}; mend or drop it")
        yield number, [values[header.index(name)] for name in columns]


def _split(line: str) -> list[str]:
    """Return the values of a line without their quotes; one quote alone is part of a value, and refused there."""
    values = [value.strip() for value in line.split(",")]
    return [value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value for value in values]


def _is_utf8(text: str) -> bool:
    """Say whether a text can be written: names of files may hold what is no character."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def _parse_size(path: Path, line: int, text: str) -> int:
    # Ten digits are more than any size has; Python refuses to read thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise _fault(path, line, f"{text[:20]!r} is no size in pixels; give a positive whole number")
    return int(text)


def _fault(path: Path, line: int, what: str) -> InputError:
    return InputError(f"{path}: line {line}: {what}")
