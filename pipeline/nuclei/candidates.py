"""Candidate nuclei: every nucleus that any zoom's probabilities and any decoding sees, with what tells good from bad.

In: the probabilities of one image at several zooms. Out: candidates as lists of pixels, and a row of features for each:
its size against what was expected, the probabilities inside it, at its rim and just outside, its shape, and how far
the other zooms and decodings agree that there is such a nucleus. Everything is counted with one pass per label map.

Source: the winners of the competition rated candidates by features of shape and probability,
    https://www.kaggle.com/competitions/data-science-bowl-2018/discussion/54741
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.diameter import equivalent_diameter
from pipeline.errors import InputError
from pipeline.nuclei.decoding import Decoding, decode_scaled, scale_probabilities

Floats = NDArray[np.float32]

_FOREGROUND, _BOUNDARY = 0, 1

# A table of so many entries per value takes longer to walk than the values to sort.
_LONG_TABLE = 16

# All but surely differ where pixels differ: the area, and the sums of positions and of their squares.
_Key = tuple[int, int, int]

# Of the label map that a candidate comes from; of its image and its size; of its inside, its rim, its shape; and of how
# far other label maps have it too. Sizes are relative and numbers of nuclei are left out: they would tell acquisitions
# apart, and what is learnt of those does not hold for the next one.
FEATURES = (
    "log2_scale", "seed_threshold", "mask_threshold",
    "image_against_expected", "image_doubt", "against_expected", "against_median",
    "foreground", "foreground_spread", "boundary", "distance", "deepest", "own_foreground",
    "rim_foreground", "rim_boundary", "rim_share", "outside_foreground", "neighbour_share",
    "roundness", "ellipse_fill",
    "agreement", "least_agreement", "agreement_finer", "agreement_coarser",
)  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """Candidates of one image.

    Attributes:
        features: (n, len(FEATURES)) float32.
        runs: (m, 2) int32, position in the flattened image and length of the runs of pixels, candidate by candidate.
        ends: (n,) int64, where each candidate's runs end in `runs`.
        shape: (2,), height and width of the image.
    """

    features: Floats
    runs: NDArray[np.int32]
    ends: NDArray[np.int64]
    shape: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def pixels_of(self, index: int) -> NDArray[np.int32]:
        """Return the positions (m,) int32 of one candidate's pixels in the flattened image."""
        starts, lengths = self.runs[self.ends[index - 1] if index else 0 : self.ends[index]].T
        within = np.arange(lengths.sum(), dtype=np.int32)
        return within + np.repeat(starts - (np.cumsum(lengths, dtype=np.int32) - lengths), lengths)


def find_candidates(
    probabilities: NDArray[Any], scales: Sequence[float], decodings: Sequence[Decoding], expected_px: float
) -> Candidates:
    """Decode each zoom, and the mean of all, in several ways, and describe every different nucleus.

    Args:
        probabilities: (S, H, W, 3) uint8 (value / 255) or floats in [0, 1], one for each of `scales`.
        scales: the zooms, relative to the image's own.
        decodings: at least one.
        expected_px: the diameter that the image's nuclei are thought to have.

    Raises:
        InputError: the array does not fit `scales`.
    """
    if probabilities.ndim != 4 or len(probabilities) != len(scales):
        raise InputError(f"probabilities are {probabilities.shape} for {len(scales)} zooms; give (zooms, H, W, 3)")
    single = [scale_probabilities(each) for each in probabilities]
    mean: Floats = np.stack(single).mean(axis=0, dtype=np.float32)
    sources = [(mean, 0.0)]
    if len(single) > 1:  # a single zoom is the mean
        sources += [(each, math.log2(scale)) for each, scale in zip(single, scales, strict=True)]
    origins = [(source, log2, decoding) for source, log2 in sources for decoding in decodings]
    label_maps = [decode_scaled(source, decoding) for source, _, decoding in origins]
    agreement = _measure_agreement(label_maps, np.array([log2 for _, log2, _ in origins]))
    features, runs, counts = (
        [np.zeros((0, len(FEATURES)), np.float32)],
        [np.zeros((0, 2), np.int32)],
        [np.zeros(0, int)],
    )
    seen: set[_Key] = set()
    for label_map, agreed, (source, log2, decoding) in zip(label_maps, agreement, origins, strict=True):
        if len(agreed) == 0:
            continue
        is_new, described, position, area = _describe_new(label_map, mean, source, expected_px, seen)
        if not is_new.any():
            continue
        own = np.array([log2, decoding.seed_threshold, decoding.mask_threshold], np.float32)
        columns = [np.tile(own, (len(described), 1)), described, agreed[is_new]]
        features.append(np.concatenate(columns, axis=1, dtype=np.float32))
        found, count = _find_runs(position, area)
        runs.append(found)
        counts.append(count)
    ends = np.cumsum(np.concatenate(counts), dtype=np.int64)
    shape = np.array(mean.shape[1:], dtype=np.int64)
    return Candidates(np.concatenate(features), np.concatenate(runs), ends, shape)


def _find_runs(position: NDArray[Any], area: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return (m, 2) int32, the start and length of each run of consecutive pixels of a nucleus, and each one's (n,).

    Given are the pixels of one nucleus after another, ascending within each, and how many each has.
    """
    is_first = np.ones(len(position), dtype=bool)
    is_first[1:] = np.diff(position) != 1
    starts = np.cumsum(area) - area
    is_first[starts] = True
    firsts = np.flatnonzero(is_first)
    runs = np.stack([position[firsts], np.diff(np.append(firsts, len(position)))], axis=1).astype(np.int32)
    return runs, np.add.reduceat(is_first, starts, dtype=np.int64)


def _measure_agreement(label_maps: Sequence[NDArray[np.int32]], log2_scales: NDArray[np.float64]) -> list[Floats]:
    """Say how far the other label maps agree with each nucleus.

    Agreement with a map is the best IoU with a nucleus of it.

    Returns:
        For each map (n, 4) float32: the mean over the other maps, the least, and the means over maps of finer and of
        coarser zooms; the mean over all where there is no such map.
    """
    best = _match_maps(label_maps)
    numbers = np.arange(len(label_maps))
    agreed = []
    for number, (log2, table) in enumerate(zip(log2_scales, best, strict=True)):
        # A map alone agrees with itself.
        others = table[:, numbers != number] if len(label_maps) > 1 else table
        sides = [table[:, side] for side in (log2_scales > log2, log2_scales < log2)]
        columns = [others.mean(axis=1), others.min(axis=1)]
        columns += [side.mean(axis=1) if side.shape[1] else columns[0] for side in sides]
        agreed.append(np.stack(columns, axis=1))
    return agreed


def _match_maps(label_maps: Sequence[NDArray[np.int32]]) -> list[Floats]:
    """Return for each label map (n, maps) float32: the best IoU of each nucleus with a nucleus of every map."""
    areas = [np.bincount(label_map.ravel(), minlength=1)[1:] for label_map in label_maps]
    best = [np.zeros((len(area), len(label_maps)), np.float32) for area in areas]
    for a, first in enumerate(label_maps):
        best[a][:, a] = 1
        inside = np.flatnonzero(first != 0)
        rows = first.ravel().take(inside).astype(np.int64) - 1
        for b in range(a + 1, len(label_maps)):
            columns = label_maps[b].ravel().take(inside)
            both = np.flatnonzero(columns != 0)
            if not len(both):
                continue
            found = rows.take(both) * len(areas[b]) + (columns.take(both) - 1)
            pairs, shared = _count_values(found, len(areas[a]) * len(areas[b]))
            row, column = np.divmod(pairs, len(areas[b]))
            iou = (shared / (areas[a][row] + areas[b][column] - shared)).astype(np.float32)
            np.maximum.at(best[a][:, b], row, iou)
            np.maximum.at(best[b][:, a], column, iou)
    return best


def _count_values(values: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the different `values`, which are below `limit`, and how often each comes."""
    if limit > _LONG_TABLE * len(values):
        return np.unique(values, return_counts=True)
    counts = np.bincount(values)
    present = np.flatnonzero(counts)
    return present, counts[present]


def _describe_new(
    label_map: NDArray[np.int32], mean: Floats, source: Floats, expected_px: float, seen: set[_Key]
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Describe those nuclei of 1..n of a label map that are not `seen`, and add them there.

    The same pixels found again are the same candidate: half of what ten label maps have.

    Returns:
        (n,) whether a nucleus is new; features (m, F) float32 of the new ones; their pixels, one nucleus after another,
        and how many each has, (m,). Where none is new, the features are to be left alone.
    """
    position = np.flatnonzero(label_map != 0)
    ids = label_map.ravel()[position] - 1
    order = np.argsort(ids, kind="stable")
    position, ids = position[order], ids[order]
    area = np.bincount(ids)
    starts = np.cumsum(area) - area
    sums = (np.add.reduceat(values, starts).tolist() for values in (position, position * position))
    keys = [*zip(area.tolist(), *sums, strict=True)]
    is_new = np.array([key not in seen for key in keys])
    seen.update(keys)
    diameter = np.log2(equivalent_diameter(area))
    median = float(np.median(diameter))
    foreground = mean[_FOREGROUND].ravel()[position]
    doubt = float((foreground * (1 - foreground)).mean())
    of_image = np.tile([median - math.log2(expected_px), doubt], (len(area), 1))
    sizes = np.stack([diameter - math.log2(expected_px), diameter - median], axis=1)
    of_all = np.concatenate([of_image, sizes], axis=1)[is_new]
    is_asked = is_new[ids]
    position, own_id = position[is_asked], ids[is_asked] + 1
    if not len(position):
        return is_new, of_all.astype(np.float32), position, area[is_new]
    ids = (np.cumsum(is_new) - 1)[own_id - 1]
    inside, at_rim = _measure_inside(position, ids, mean, source), _measure_rim(label_map, position, own_id, ids, mean)
    shape = _measure_shape(label_map.shape[1], position, ids)
    features = np.concatenate([of_all, inside, at_rim, shape], axis=1).astype(np.float32)
    return is_new, features, position, area[is_new]


def _average(ids: NDArray[Any], count: int, *values: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Return the mean of each of `values` over the pixels of each id, 0 where an id has none; (count,) each."""
    sizes = np.maximum(np.bincount(ids, minlength=count), 1)
    return [np.bincount(ids, each, count) / sizes for each in values]


def _measure_inside(position: NDArray[Any], ids: NDArray[Any], mean: Floats, source: Floats) -> NDArray[np.float64]:
    """Return (n, 6): foreground and its spread, boundary, distance, the deepest, and the own zoom's foreground."""
    foreground, boundary, distance = (plane.ravel()[position] for plane in mean)
    count = int(ids[-1]) + 1
    deepest = np.maximum.reduceat(distance, np.searchsorted(ids, np.arange(count)))  # ids are sorted, without gaps
    level, square, *others = _average(
        ids, count, foreground, foreground.astype(np.float64) ** 2, boundary, distance,
        source[_FOREGROUND].ravel()[position],
    )  # fmt: skip
    spread = np.sqrt(np.maximum(square - level**2, 0))
    return np.stack([level, spread, others[0], others[1], deepest, others[2]], axis=1)


def _measure_rim(
    label_map: NDArray[np.int32], position: NDArray[Any], own_id: NDArray[Any], ids: NDArray[Any], mean: Floats
) -> NDArray[np.float64]:
    """Return (n, 5): foreground and boundary at the rim, the rim's length squared over the area, foreground just
    outside, and the share of the outside that is another nucleus.
    """
    width, count = label_map.shape[1], int(ids[-1]) + 1
    padded = np.pad(label_map, 1, mode="edge").ravel()
    at = position + 2 * (position // width) + width + 3
    beside, owner, neighbour = [], [], []
    is_rim = np.zeros(len(position), dtype=bool)
    for step, padded_step in ((-1, -1), (1, 1), (-width, -width - 2), (width, width + 2)):
        around = padded.take(at + padded_step)
        # A neighbour outside the image repeats the edge, so it is no different and never asked for.
        differs = around != own_id
        is_rim |= differs
        asked = np.flatnonzero(differs)
        beside.append(position.take(asked) + step)
        owner.append(ids.take(asked))
        neighbour.append(around.take(asked) > 0)
    on_rim = np.flatnonzero(is_rim)
    rim, rim_at = ids.take(on_rim), position.take(on_rim)
    at_rim = _average(rim, count, *(mean[plane].ravel().take(rim_at) for plane in (_FOREGROUND, _BOUNDARY)))
    foreground = mean[_FOREGROUND].ravel().take(np.concatenate(beside))
    outside = _average(np.concatenate(owner), count, foreground, np.concatenate(neighbour))
    length = np.bincount(rim, minlength=count)
    return np.stack([*at_rim, length**2 / np.bincount(ids), *outside], axis=1)


def _measure_shape(width: int, position: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.float64]:
    """Return (n, 2): the ratio of the two variances of the pixels along the axes of the ellipse that has their
    moments, 1 for a disc; and the area over that ellipse's, 1 for an ellipse and less where there are dents.
    """
    row, column = np.divmod(position, width)
    count = int(ids[-1]) + 1
    rows, columns = _average(ids, count, row, column)
    down, along = row - rows[ids], column - columns[ids]
    # A pixel is a square of variance 1/12 each way.
    vertical, horizontal, mixed = _average(ids, count, down**2, along**2, down * along) + np.array(
        [[1 / 12], [1 / 12], [0]]
    )
    root = np.sqrt(np.maximum(vertical * horizontal - mixed**2, 1e-6))
    half = (vertical + horizontal) / 2
    spread = np.sqrt(np.maximum(half**2 - root**2, 0))
    return np.stack([(half - spread) / (half + spread), np.bincount(ids) / (4 * np.pi * root)], axis=1)
