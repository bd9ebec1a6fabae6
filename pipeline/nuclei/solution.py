"""The test set's truth as Kaggle gives it, and a submission's score against it.

In: a submission; Kaggle's solution `ImageId,EncodedPixels,Height,Width,Usage`. Out: a score, image by image and in all.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.nuclei.csv_rows import Row, name_fault, read_rows
from pipeline.nuclei.metric import THRESHOLDS_PERCENT, Matches, Overlap, average_precision, match_overlap
from pipeline.nuclei.rle import decode_pixels
from pipeline.nuclei.submission import COLUMNS, Shape, Submission

_COLUMNS = (*COLUMNS, "Height", "Width", "Usage")
# Bounds that keep what a few bytes can ask for to some gigabytes; the competition's largest image has 1.4 million
# pixels and a few hundred nuclei.
_MAX_PIXELS = 50_000_000  # of an image in a solution; as many as housekeeping.max_pixels lets an image have
_MAX_PAIRS = 2**26  # true nuclei times predicted ones of an image
_MAX_COVER = 16  # how many times an image's area its true masks may have together; they hardly overlap
_IGNORED = "ignored"  # the Usage, in lower case, of rows that Kaggle does not score


@dataclass(frozen=True)
class Truth:
    """The true nuclei of one image."""

    shape: Shape
    rows: list[Row]


@dataclass(frozen=True)
class Solution:
    """A solution without the rows whose Usage is Ignored.

    Attributes:
        path: of the file, which errors name.
        truths: of every image that is scored; an image all of whose rows are ignored is left out.
    """

    path: Path
    truths: dict[str, Truth]


@dataclass(frozen=True)
class SubmissionScore:
    """A submission against a solution."""

    table: pd.DataFrame  # image_id, ap, ap50 .. ap95; a row per scored image, sorted by image_id
    mean: float  # of ap over images, the competition's score
    not_scored: int  # images of the submission for which the solution has no scored row


def read_solution(path: Path) -> Solution:
    """Read Kaggle's solution.

    Raises:
        InputError: the file is missing, is not UTF-8, has other columns, or an image's sizes are no positive numbers,
            differ from row to row, or make an image that is absurdly large.
    """
    truths: dict[str, Truth] = {}
    for line, (image_id, text, height, width, usage) in read_rows(path, _COLUMNS, any_order=True):
        if usage.strip().lower() == _IGNORED:
            continue
        shape = (_parse_size(path, line, height), _parse_size(path, line, width))
        if shape[0] * shape[1] > _MAX_PIXELS:
            raise name_fault(
                path, line, f"image {image_id} is {shape}; no more than {_MAX_PIXELS} pixels; mend the sizes"
            )
        truth = truths.setdefault(image_id, Truth(shape, []))
        if truth.shape != shape:
            raise name_fault(path, line, f"image {image_id} is {shape} here and {truth.shape} above; mend the sizes")
        if text.strip():
            truth.rows.append(Row(line, text.strip()))
    return Solution(path, truths)


def read_solution_of(path: Path, image_ids: Collection[str]) -> Solution | None:
    """Return the truth of a test set, or None where it is not known: there is no file, or no test image.

    Args:
        path: where the solution would be.
        image_ids: of the test images.

    Raises:
        InputError: as `read_solution`, or it is the truth of other images.
    """
    if not image_ids or not path.is_file():
        return None
    solution = read_solution(path)
    strangers = sorted(solution.truths.keys() - set(image_ids))
    if strangers:
        raise InputError(
            f"{path}: image {strangers[0]} is none of the test images; set data.solution to theirs, or to null"
        )
    return solution


def score_submission(submission: Submission, solution: Solution) -> SubmissionScore:
    """Score a submission as the competition does.

    Images that the solution does not score (stage 2 hid the scored ones among thousands) are counted and passed over.

    Raises:
        InputError: a scored image is missing from the submission, runs of it are wrong in either file, or the solution
            scores no image.
    """
    truths = solution.truths
    if not truths:
        raise InputError(f"{solution.path}: no row is scored; every Usage is Ignored, or the file has no rows")
    submission.demand_images(truths)
    rows = []
    for image_id, truth in sorted(truths.items()):
        columns = submission.decode_columns(image_id, truth.shape)
        precision = average_precision(_match_rows(solution.path, image_id, truth, columns))
        rows.append((image_id, precision.mean(), *precision))
    table = pd.DataFrame(rows, columns=["image_id", "ap", *(f"ap{percent}" for percent in THRESHOLDS_PERCENT)])
    return SubmissionScore(table, float(table["ap"].mean()), len(submission.images.keys() - truths.keys()))


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
            raise name_fault(path, row.line, f"image {image_id}: {error}") from error
        covered += pixels.size
        if covered > _MAX_COVER * columns.size:
            raise name_fault(path, row.line, f"image {image_id}: its masks cover it {_MAX_COVER} times; mend the masks")
        table[index] = np.bincount(columns[pixels], minlength=n_columns)
    prediction_areas = np.bincount(columns, minlength=1)[1:]
    return match_overlap(Overlap(table.sum(axis=1), prediction_areas, table[:, 1:]))


def _parse_size(path: Path, line: int, text: str) -> int:
    # Ten digits are more than any size has; Python refuses to read thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise name_fault(path, line, f"{text[:20]!r} is no size in pixels; give a positive whole number")
    return int(text)
