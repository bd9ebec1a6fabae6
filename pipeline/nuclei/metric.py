"""The competition's score of an image: mean average precision over ten IoU thresholds.

In: true and predicted label maps. Out: counts of matches, and the formulas on them, apart from one another.

A pair of nuclei matches where its IoU is strictly greater than the threshold. As every threshold is at least 0.5 and
predictions do not overlap, each true nucleus has at most one match, so counting from one overlap table is exact.

Source: https://www.kaggle.com/competitions/data-science-bowl-2018/overview/evaluation
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

# The thresholds 0.50, 0.55 .. 0.95 in twentieths: IoU > k/20 is 20 I > k U, in integers and so exact.
TWENTIETHS = np.arange(10, 20)
THRESHOLDS_PERCENT = tuple((5 * TWENTIETHS).tolist())

# A table of fewer entries than this is cheap whatever its gaps.
_SMALL_TABLE = 2**16


@dataclass(frozen=True)
class Overlap:
    """What two sets of nuclei share, in pixels; every nucleus listed has at least one."""

    truth_areas: NDArray[np.int64]  # (n_truth,)
    prediction_areas: NDArray[np.int64]  # (n_prediction,)
    shared: NDArray[np.int64]  # (n_truth, n_prediction)


@dataclass(frozen=True)
class Matches:
    """Counts of one image. They add up over images."""

    n_truth: int
    n_prediction: int
    true_positives: NDArray[np.int64]  # (10,), one for each threshold


def tabulate_overlap(truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> Overlap:
    """Count shared pixels of all pairs of nuclei with one bincount.

    Args:
        truth: (H, W) integers, 0 background; the ids may have gaps.
        prediction: the same.

    Raises:
        InputError: the shapes differ, or an id is negative.
    """
    if truth.shape != prediction.shape:
        raise InputError(f"the truth is {truth.shape} and the prediction {prediction.shape}; they must be of one size")
    # Pixels that are background in both, most of many images, are left out: no area needs them.
    pixels = np.flatnonzero((truth.ravel() != 0) | (prediction.ravel() != 0))
    rows, columns = (_check_ids(label_map.ravel().take(pixels)) for label_map in (truth, prediction))
    n_rows, n_columns = (int(ids.max(initial=0)) + 1 for ids in (rows, columns))
    if n_rows * n_columns > max(rows.size, _SMALL_TABLE):
        rows, n_rows = _close_gaps(rows)
        columns, n_columns = _close_gaps(columns)
    pairs = np.multiply(rows, n_columns, dtype=np.int64)
    pairs += columns
    table = np.bincount(pairs, minlength=n_rows * n_columns).reshape(n_rows, n_columns)
    truth_areas, prediction_areas = table.sum(axis=1)[1:], table.sum(axis=0)[1:]
    # An id that is not there is no nucleus.
    kept = np.ix_(truth_areas > 0, prediction_areas > 0)
    return Overlap(truth_areas[truth_areas > 0], prediction_areas[prediction_areas > 0], table[1:, 1:][kept])


def _check_ids(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    if ids.size and ids.min() < 0:
        raise InputError(f"the label map has the id {ids.min()}; ids are 0 for background and positive for nuclei")
    return ids


def _close_gaps(ids: NDArray[np.integer]) -> tuple[NDArray[np.integer], int]:
    """Return `ids` renumbered to 0, 1, .. n without gaps, and n + 1."""
    if ids.max(initial=0) > ids.size:  # a look-up of all ids up to this one would cost more than sorting the pixels
        present, closed = np.unique(np.append(0, ids), return_inverse=True)
        return closed[1:], len(present)
    is_present = np.bincount(ids) > 0
    is_present[0] = True
    new_ids = np.cumsum(is_present) - 1
    return new_ids[ids], int(new_ids[-1]) + 1


def pass_thresholds(shared: NDArray[np.integer], union: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return (..., 10) bool: which thresholds the IoU of pairs of nuclei is above.

    Args:
        shared: (...) pixels that a pair has in common.
        union: (...) pixels that it covers.
    """
    return 20 * shared[..., None] > TWENTIETHS * union[..., None]


def match_overlap(overlap: Overlap) -> Matches:
    """Count the matches of an overlap table.

    A prediction counts once, even where true nuclei overlap so far that it matches two of them.
    """
    areas = overlap.truth_areas[:, None] + overlap.prediction_areas[None, :]
    # Only pairs over the lowest threshold can match at all: a handful, where the table may hold 160,000.
    pairs = np.flatnonzero((20 + TWENTIETHS[0]) * overlap.shared > TWENTIETHS[0] * areas)
    shared = overlap.shared.ravel()[pairs]
    is_match = pass_thresholds(shared, areas.ravel()[pairs] - shared)
    is_matched = np.zeros((len(overlap.prediction_areas), len(TWENTIETHS)), dtype=bool)
    if pairs.size:
        np.logical_or.at(is_matched, pairs % len(overlap.prediction_areas), is_match)
    return Matches(len(overlap.truth_areas), len(overlap.prediction_areas), is_matched.sum(axis=0))


def count_matches(truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> Matches:
    """Count the matches of one image at the ten thresholds.

    Args:
        truth: (H, W) integers, 0 background; the ids may have gaps.
        prediction: the same.

    Raises:
        InputError: the shapes differ, or an id is negative.
    """
    return match_overlap(tabulate_overlap(truth, prediction))


def average_precision(matches: Matches) -> NDArray[np.float64]:
    """Return TP / (TP + FP + FN) at the ten thresholds, (10,) in [0, 1]; 1 where there is no nucleus at all."""
    everything = matches.n_truth + matches.n_prediction - matches.true_positives
    return np.where(everything > 0, matches.true_positives / np.maximum(everything, 1), 1.0)


def score(truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> float:
    """Return the competition's score of one image, in [0, 1].

    Args:
        truth: (H, W) integers, 0 background; the ids may have gaps.
        prediction: the same.

    Raises:
        InputError: the shapes differ, or an id is negative.
    """
    return float(average_precision(count_matches(truth, prediction)).mean())


def pooled_average_precision(matches: Sequence[Matches]) -> NDArray[np.float64]:
    """Return the average precision of all images' nuclei taken together, (10,) in [0, 1].

    Source: StarDist counts so (`matching_dataset` with `by_image=False`,
        https://github.com/stardist/stardist/blob/main/stardist/matching.py); the competition averages over images.
    """
    hits = np.sum([m.true_positives for m in matches], axis=0, dtype=np.int64) + np.zeros_like(TWENTIETHS)
    return average_precision(Matches(sum(m.n_truth for m in matches), sum(m.n_prediction for m in matches), hits))
