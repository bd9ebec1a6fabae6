"""The scores of the ISBI 2012 challenge: how well cells are kept apart by a map of membranes.

In: the label map of a slice, and the probability of being inside a cell. Out: counts of slices, and the formulas on
them, apart from one another. A proposal is the 4-connected regions above a threshold. What the truth calls membrane is
left out of everything ("foreground-restricted"), so that its width costs nothing; a pixel that only the proposal calls
membrane is a region of its own.

`v_rand` and `v_info` are for proposals whose membranes were thinned to lines, `rand_error` and `pixel_error`, by which
the challenge ranked before, for proposals as they are.

Source: Arganda-Carreras et al. 2015, Crowdsourcing the creation of image segmentation algorithms for connectomics,
    section "Evaluation metrics" (doi:10.3389/fnana.2015.00142).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy
from skimage.segmentation import watershed

from pipeline.nuclei.decoding import label_components
from pipeline.nuclei.metric import tabulate_overlap

# As the challenge's script goes through them: from 0 to 1 in steps of 0.1.
THRESHOLDS = tuple(tenth / 10 for tenth in range(11))


@dataclass(frozen=True)
class RegionCounts:
    """Sums over the pixels of a slice that the truth calls cell.

    With a_i the pixels of cell i, b_j of region j, p_ij of both, and n of the slice: squares are sums of a_i^2, b_j^2
    and p_ij^2; entropies are n H in nats, of cells, regions and pairs. Pixels and squares add up over slices.
    """

    pixels: float
    squares: NDArray[np.float64]  # (3,): of cells, regions and pairs
    entropies: NDArray[np.float64]  # (3,): likewise

    def __add__(self, other: "RegionCounts") -> "RegionCounts":
        """Return the counts of both."""
        return RegionCounts(self.pixels + other.pixels, self.squares + other.squares, self.entropies + other.entropies)


@dataclass(frozen=True)
class PixelCounts:
    """Pixels that truth and proposal call inside of a cell; they add up over slices."""

    truth: int
    proposal: int
    both: int

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        """Return the counts of both."""
        return PixelCounts(self.truth + other.truth, self.proposal + other.proposal, self.both + other.both)


def thin_membranes(regions: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return `regions` (H, W), grown evenly into the membranes until lines of one pixel part them.

    No region is lost, made or merged, at the edge of the slice neither, where a skeleton would draw back from it.
    """
    if not regions.any():
        return regions
    depth = cv2.distanceTransform((regions == 0).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return watershed(depth, regions, connectivity=1, watershed_line=True).astype(np.int32, copy=False)


def count_regions(truth: NDArray[np.integer], regions: NDArray[np.integer]) -> RegionCounts:
    """Count one slice: `truth` and `regions`, (H, W) integers, 0 membrane.

    Raises:
        InputError: the shapes differ, or an id is negative.
    """
    overlap = tabulate_overlap(truth, regions)
    areas = (overlap.truth_areas, overlap.shared.sum(axis=0), overlap.shared)
    # Membrane of the proposal inside of a cell: each of these pixels is a region, and a pair, of one.
    alone = int(overlap.truth_areas.sum() - overlap.shared.sum())
    singles = np.array([0, alone, alone], np.float64)
    squares = np.array([float((part.astype(np.float64) ** 2).sum()) for part in areas]) + singles
    pixels = float(overlap.truth_areas.sum())
    # n H = n log n - sum of a log a; of a region of one pixel, 1 log 1 is 0.
    entropies = np.array([float(xlogy(pixels, pixels) - xlogy(part, part).sum()) for part in areas])
    return RegionCounts(pixels, squares, entropies)


def count_pixels(truth: NDArray[np.integer], inside: NDArray[np.bool_]) -> PixelCounts:
    """Count one slice: `truth` (H, W) integers, 0 membrane; `inside` (H, W)."""
    cells = truth > 0
    return PixelCounts(int(cells.sum()), int(inside.sum()), int((cells & inside).sum()))


def v_rand(counts: RegionCounts) -> float:
    """Return the foreground-restricted Rand score, 0 (bad) to 1: 2 sum(p^2) / (sum(a^2) + sum(b^2)).

    It is the harmonic mean of the chances that two pixels of one region are of one cell, and the other way round.
    1 where the truth has no cell.

    Source: Arganda-Carreras et al. 2015, the Rand F-score, alpha = 0.5.
    """
    cells, regions, pairs = counts.squares
    return float(2 * pairs / (cells + regions)) if counts.pixels else 1.0


def v_info(counts: RegionCounts) -> float:
    """Return the foreground-restricted information-theoretic score of a slice, 0 to 1: 2 I / (H(cells) + H(regions)).

    1 is good, and what there is where nothing is to tell: a single cell, and a single region.

    Source: Arganda-Carreras et al. 2015, the information theoretic F-score, alpha = 0.5.
    """
    cells, regions, pairs = counts.entropies
    return float(2 * (cells + regions - pairs) / (cells + regions)) if cells + regions > 0 else 1.0


def rand_error(counts: RegionCounts) -> float:
    """Return 1 - the F-score over pairs of different pixels, 0 (good) to 1; 0 where the truth has no pair.

    Source: http://brainiac2.mit.edu/isbi_challenge/evaluation, "dismissed metrics"; also
        `skimage.metrics.adapted_rand_error`, where membrane is one region more.
    """
    cells, regions, pairs = counts.squares - counts.pixels
    return float(1 - 2 * pairs / (cells + regions)) if cells + regions > 0 else 0.0


def pixel_error(counts: PixelCounts) -> float:
    """Return 1 - the F-score of the pixels inside of cells, 0 (good) to 1; 0 where there are none.

    Source: http://brainiac2.mit.edu/isbi_challenge/evaluation, "dismissed metrics".
    """
    every = counts.truth + counts.proposal
    return 1 - 2 * counts.both / every if every else 0.0


@dataclass(frozen=True)
class SliceCounts:
    """Counts of a slice at every one of `THRESHOLDS`."""

    thinned: tuple[RegionCounts, ...]
    plain: tuple[RegionCounts, ...]
    pixels: tuple[PixelCounts, ...]


def count_slice(truth: NDArray[np.integer], inside: NDArray[np.floating]) -> SliceCounts:
    """Count a slice at all thresholds.

    Args:
        truth: (H, W) integers, 0 membrane.
        inside: (H, W) in [0, 1], the probability of the inside of a cell.
    """
    masks = [inside > threshold for threshold in THRESHOLDS]
    regions = [label_components(mask) for mask in masks]
    return SliceCounts(
        tuple(count_regions(truth, thin_membranes(part)) for part in regions),
        tuple(count_regions(truth, part) for part in regions),
        tuple(count_pixels(truth, mask) for mask in masks),
    )


def score_stack(slices: Iterable[SliceCounts]) -> dict[str, float]:
    """Return the four scores of a stack, each at its best threshold, which is named beside it and serves all slices.

    Counts are pooled over slices, but for `v_info`, which is the mean over slices: of a pool, which slice a pixel is of
    would be information too. Keys: `v_rand`, `v_info`, `rand_error`, `pixel_error`, and `<name>_threshold`.

    Source: the challenge's own evaluation does so, https://github.com/fiji/Trainable_Segmentation, package `metrics`.
    """
    every = list(slices)
    thinned, plain, pixels = (
        [reduce(lambda a, b: a + b, counts) for counts in zip(*parts, strict=True)]
        for parts in zip(*((one.thinned, one.plain, one.pixels) for one in every), strict=True)
    )
    informed = np.mean([[v_info(counts) for counts in one.thinned] for one in every], axis=0)
    found = {
        "v_rand": [v_rand(counts) for counts in thinned],
        "v_info": informed.tolist(),
        "rand_error": [rand_error(counts) for counts in plain],
        "pixel_error": [pixel_error(counts) for counts in pixels],
    }
    scores: dict[str, float] = {}
    for name, values in found.items():
        best = int(np.argmin(values) if name.endswith("error") else np.argmax(values))
        scores |= {name: values[best], f"{name}_threshold": THRESHOLDS[best]}
    return scores
