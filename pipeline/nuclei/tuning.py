"""The search for the decoding parameters, on out-of-fold predictions.

In: probabilities and true label maps, image by image. Out: counts of matches for every image and every decoding, and
which decoding is best, also fold by fold on the other folds, so that no image is scored with parameters chosen on
itself.

The grid is searched whole, since decodings share what their common parameters do (`make bench only=decoding` times it).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.nuclei.decoding import Decoding, average_zooms, find_cores, grow_nuclei, scale_probabilities
from pipeline.nuclei.metric import Matches, Overlap, average_precision, match_overlap, tabulate_overlap
from pipeline.parallel import map_in_order
from pipeline.params import DecodeParams
from pipeline.progress import track

# image_id, probabilities (S, H, W, 3) uint8 at S zooms, true label map (H, W) integers.
Labelled = tuple[str, NDArray[np.uint8], NDArray[np.integer]]


@dataclass(frozen=True)
class CrossFit:
    """Indices of the chosen decodings."""

    on_all: int  # chosen on all images; for images that none of the networks saw
    on_others: dict[int, int]  # for each fold, chosen on the images of the other folds


def decoding_grid(params: DecodeParams) -> list[Decoding]:
    """Return all combinations of the parameters' values, the last one varying fastest."""
    grid = product(params.seed_threshold, params.boundary_weight, params.mask_threshold, params.min_area_px)
    return [Decoding(*values) for values in grid]


def middle_decoding(params: DecodeParams) -> Decoding:
    """Return the middle value of every parameter, the upper of two: for a look before anything is chosen."""
    return Decoding(
        params.seed_threshold[len(params.seed_threshold) // 2],
        params.boundary_weight[len(params.boundary_weight) // 2],
        params.mask_threshold[len(params.mask_threshold) // 2],
        params.min_area_px[len(params.min_area_px) // 2],
    )


def count_decodings(
    items: Iterable[Labelled], choices: Sequence[Decoding], workers: int, total: int
) -> list[list[Matches]]:
    """Decode and count every image with every decoding, over several processes.

    Args:
        items: images, taken as processes get free.
        choices: the decodings.
        workers: processes; 1 works in this one.
        total: the number of images, for the bar.

    Returns:
        For each image the matches of each decoding.

    Raises:
        InputError: the two arrays of an image differ in size.
    """
    jobs = ((*item, tuple(choices)) for item in items)
    return list(track(map_in_order(_count_job, jobs, workers), "search decoding", total))


def _count_job(job: tuple[str, NDArray[np.uint8], NDArray[np.integer], Sequence[Decoding]]) -> list[Matches]:
    image_id, probabilities, truth, choices = job
    try:
        return count_image(average_zooms(probabilities), truth, choices)
    except InputError as error:
        raise InputError(f"image {image_id}: {error}") from error


def count_image(probabilities: NDArray[Any], truth: NDArray[np.integer], choices: Sequence[Decoding]) -> list[Matches]:
    """Decode and count one image with every decoding: the same counts as decoding it anew for each.

    Neighbours in `choices` that differ in `min_area_px` alone share one watershed, as dropping small nuclei is dropping
    columns of the overlap table.

    Args:
        probabilities: (H, W, 3), uint8 or floats in [0, 1].
        truth: (H, W) integers, 0 background.
        choices: the decodings.

    Raises:
        InputError: the two differ in size.
    """
    scaled = scale_probabilities(probabilities)
    cores = {weight: find_cores(scaled, weight) for weight in {choice.boundary_weight for choice in choices}}
    matches: list[Matches] = []
    for _, group in groupby(choices, key=_without_area):
        same = list(group)
        overlap = tabulate_overlap(truth, grow_nuclei(scaled, cores[same[0].boundary_weight], same[0]))
        matches += [match_overlap(_keep_large(overlap, choice.min_area_px)) for choice in same]
    return matches


def _without_area(choice: Decoding) -> tuple[float, float, float]:
    return choice.seed_threshold, choice.boundary_weight, choice.mask_threshold


def _keep_large(overlap: Overlap, min_area_px: int) -> Overlap:
    is_kept = overlap.prediction_areas >= min_area_px
    return Overlap(overlap.truth_areas, overlap.prediction_areas[is_kept], overlap.shared[:, is_kept])


def score_decodings(counts: Sequence[Sequence[Matches]]) -> NDArray[np.float64]:
    """Return the score of each image with each decoding, (n_images, n_decodings) in [0, 1]."""
    return np.array([[average_precision(matches).mean() for matches in image] for image in counts])


def choose(scores: NDArray[np.float64]) -> int:
    """Return the decoding with the highest mean over images; the first one where several have it.

    Args:
        scores: (n_images, n_decodings) in [0, 1].

    Raises:
        InputError: there is no image or no decoding.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise InputError(f"scores are {scores.shape}; choosing needs at least one image and one decoding")
    return int(np.argmax(scores.mean(axis=0)))


def cross_fit(scores: NDArray[np.float64], folds: NDArray[np.integer]) -> CrossFit:
    """Choose for each fold on the images of the other folds, and once on all.

    Args:
        scores: (n_images, n_decodings) in [0, 1].
        folds: (n_images,), the fold of each image.

    Raises:
        InputError: the lengths differ, or there are fewer than two folds.
    """
    if len(scores) != len(folds):
        raise InputError(f"{len(scores)} images have scores and {len(folds)} have folds; give both for the same images")
    ids = np.unique(folds).tolist()
    if len(ids) < 2:
        raise InputError(f"the images have the folds {ids}; cross-fitting needs at least two")
    return CrossFit(choose(scores), {fold: choose(scores[folds != fold]) for fold in ids})
