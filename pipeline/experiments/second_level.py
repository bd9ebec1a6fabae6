"""The second-level model's cross-validation: candidates of every held-out image, and what a model chooses of them.

In: out-of-fold predictions and true label maps. Out: a pack of candidates with their worth, and label maps, each chosen
by a model that was fitted on the other folds.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.experiments.instances import Arrays, candidates_of, fit_on, read_prediction
from pipeline.files import atomic_path
from pipeline.images.store import Pack, PackWriter
from pipeline.nuclei.candidates import Candidates
from pipeline.nuclei.decoding import Decoding, average_zooms, decode_instances
from pipeline.nuclei.selection import choose_set, measure_worth, rate_candidates
from pipeline.parallel import map_in_order
from pipeline.params import Params
from pipeline.progress import track


def store_candidates(path: Path, predictions: Arrays, truths: Arrays, image_ids: Sequence[str], params: Params) -> None:
    """Write the candidates of images and their worth to a pack; memory does not grow with the number of images.

    For each image `<image_id>.features`, `.runs`, `.ends` and `.shape` as in `Candidates`, and `.worth` (n,) float32.
    Images that are left to one decoding have no entries; with `select.trees` 0 the pack is empty.
    """
    names = list(image_ids) if params.select.trees else []
    jobs = ((*read_prediction(predictions, name), truths[f"{name}.label_map"], params) for name in names)
    found = track(map_in_order(_rate_job, jobs, params.decode.workers), "find candidates", total=len(names))
    with atomic_path(path) as partial, PackWriter(partial) as pack:
        for image_id, arrays in zip(names, found, strict=True):
            for name, array in arrays.items():
                pack.add(f"{image_id}.{name}", array)


def _rate_job(job: tuple[NDArray[np.uint8], float, NDArray[Any], Params]) -> dict[str, NDArray[Any]]:
    probabilities, zoom, truth, params = job
    candidates = candidates_of(probabilities, zoom, params)
    if candidates is None:
        return {}
    return {**vars(candidates), "worth": measure_worth(candidates, truth)}


def find_held_out(
    candidates: Pack, predictions: Arrays, folds: Mapping[str, int], decodings: Mapping[int, Decoding], params: Params
) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (image_id, label_map (H, W) int32) of every image, as chosen by what the other folds taught.

    Args:
        candidates: of `store_candidates`.
        predictions: `<image_id>.probabilities`.
        folds: the fold of each image; images come out in this order.
        decodings: for each fold, what was chosen on the others, for images without candidates.
        params: all of params.yaml.
    """
    rated = [name for name in folds if f"{name}.worth" in candidates]
    models = {
        fold: fit_on(candidates, [name for name in rated if folds[name] != fold], params)
        for fold in sorted(set(folds.values()))
    }
    for image_id, fold in folds.items():
        model = models[fold]
        if model is None or f"{image_id}.worth" not in candidates:
            probabilities, _ = read_prediction(predictions, image_id)
            yield image_id, decode_instances(average_zooms(probabilities), decodings[fold])
            continue
        stored = Candidates(*(candidates[f"{image_id}.{name}"] for name in ("features", "runs", "ends", "shape")))
        yield image_id, choose_set(stored, rate_candidates(model, stored), params.select)
