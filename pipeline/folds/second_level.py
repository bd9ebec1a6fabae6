"""The second-level model's cross-validation: candidates of every held-out image, and what a model chooses of them.

In: out-of-fold predictions and true label maps. Out: candidates with their worth, and label maps, each chosen by
trees that were fitted on the other folds.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.folds.candidate_store import CandidateStore, Floats
from pipeline.folds.finder import CandidateFinder, choose_rated
from pipeline.folds.predictions import Stored
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.candidates import Candidates
from pipeline.nuclei.decoding import Decoding, average_zooms, decode_instances
from pipeline.nuclei.fitting import fit_trees, measure_worth
from pipeline.nuclei.selection import rate_candidates
from pipeline.nuclei.signals import Signals
from pipeline.nuclei.trees import Trees
from pipeline.parallel import map_in_order
from pipeline.params import SelectParams
from pipeline.progress import track


def rate_images(
    predictions: Stored, split: PreparedSplit, finder: CandidateFinder, workers: int
) -> Iterator[tuple[str, Candidates, Floats]]:
    """Yield (image_id, candidates, worth (n,) float32) of a labelled split's images.

    Images that are left to one decoding are passed over; with `select.trees` 0 that is all of them.
    """
    names = split.image_ids if finder.select.trees else []
    jobs = ((finder, *predictions[name], split.label_map(name)) for name in names)
    found = track(map_in_order(_rate_job, jobs, workers), "find candidates", total=len(names))
    for image_id, rated in zip(names, found, strict=True):
        if rated is not None:
            yield image_id, *rated


def _rate_job(
    job: tuple[CandidateFinder, NDArray[np.uint8], float, NDArray[np.integer]],
) -> tuple[Candidates, Floats] | None:
    finder, probabilities, zoom, truth = job
    candidates = finder.find(probabilities, zoom)
    return None if candidates is None else (candidates, measure_worth(candidates, truth))


def find_held_out(
    store: CandidateStore,
    predictions: Stored,
    folds: Mapping[str, int],
    decodings: Mapping[int, Decoding],
    select: SelectParams,
) -> Iterator[tuple[str, NDArray[np.int32], Signals | None]]:
    """Fit a model for each of some folds on all others, and find the nuclei of each of its images in turn.

    Args:
        store: the candidates of `rate_images`.
        predictions: of the same images.
        folds: the fold of each image; images come out in this order.
        decodings: for each fold that is asked for, what was chosen on the others, for images without candidates.
        select: the second level's parameters.

    Returns:
        image_id, label map (H, W) int32, and signals: None of an image without candidates.
    """
    rated = [name for name in folds if name in store]
    ids = sorted(decodings)
    others = [[name for name in rated if folds[name] != k] for k in ids]
    trees_of = dict(zip(ids, fit_second_level(store, others, select), strict=True))

    def find(image_id: str, fold: int) -> tuple[NDArray[np.int32], Signals | None]:
        trees = trees_of[fold]
        if trees is None or image_id not in store:
            return decode_instances(average_zooms(predictions[image_id][0]), decodings[fold]), None
        candidates = store.candidates(image_id)
        return choose_rated(candidates, rate_candidates(trees, candidates), select)

    return ((image_id, *find(image_id, fold)) for image_id, fold in folds.items() if fold in decodings)


def fit_second_level(store: CandidateStore, parts: Sequence[Sequence[str]], select: SelectParams) -> list[Trees | None]:
    """Fit the second level's trees on the stored candidates of each list of images; None where they have none."""
    if select.trees == 0:
        return [None] * len(parts)
    return [_fit_part(store, image_ids, select) for image_ids in track(parts, "fit second level", unit="model")]


def _fit_part(store: CandidateStore, image_ids: Sequence[str], select: SelectParams) -> Trees | None:
    features, worth = zip(*(store.lesson(image_id) for image_id in image_ids), strict=True) if image_ids else ((), ())
    if not any(map(len, features)):
        return None
    image = np.repeat(np.arange(len(features)), [len(each) for each in features])
    return fit_trees(np.concatenate(features), np.concatenate(worth), image, select)
