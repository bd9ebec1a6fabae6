"""Stored predictions to nuclei. In: probabilities at several zooms. Out: label maps, one at a time.

Two ways lead there: one decoding of the mean over zooms, and the second-level model, which chooses among the candidates
of many decodings. The model is refitted from its table of candidates: no model is ever loaded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.images.store import Pack
from pipeline.nuclei.candidates import FEATURES, Candidates, find_candidates
from pipeline.nuclei.decoding import Decoding, average_zooms, decode_instances, decode_strips
from pipeline.nuclei.selection import choose_set, fit_model, list_decodings, rate_candidates
from pipeline.parallel import map_in_order
from pipeline.params import Params

Arrays = Mapping[str, NDArray[Any]]


def read_decodings(path: Path) -> dict[str, Decoding]:
    """Return the chosen decoding parameters in a `decoding.json`: under `all`, and under each fold's id.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_json(path)
    try:
        return {name: Decoding(**values) for name, values in {"all": content["all"], **content["folds"]}.items()}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no decoding parameters ({error}); run the stage `evaluate` again") from error


def read_prediction(predictions: Arrays, image_id: str) -> tuple[NDArray[np.uint8], float]:
    """Return the probabilities (S, H, W, 3) and the zoom of an image, as `store_predictions` wrote them.

    Raises:
        InputError: the image was not predicted.
    """
    try:
        return predictions[f"{image_id}.probabilities"], float(predictions[f"{image_id}.zoom"])
    except KeyError as error:
        raise InputError(f"image {image_id}: it has no prediction; run the stage that predicts it again") from error


def is_large(shape: tuple[int, ...], params: Params) -> bool:
    """Whether an image of `shape` (H, W, ...) is left to one decoding, which needs it only in strips."""
    return shape[0] * shape[1] > params.select.max_pixels


def candidates_of(probabilities: NDArray[np.uint8], zoom: float, params: Params) -> Candidates | None:
    """Return the candidates of an image, or None where one decoding is to find its nuclei.

    Args:
        probabilities: (S, H, W, 3), value / 255.
        zoom: at which the image was seen.
        params: `select` says how, and which images are too large; `train` the size of nuclei at that zoom.
    """
    if params.select.trees == 0 or is_large(probabilities.shape[1:3], params):
        return None
    expected_px = max(params.train.object_diameter_px, 1.0) / zoom
    return find_candidates(probabilities, params.predict.scales, list_decodings(params.select), expected_px)


@dataclass(frozen=True)
class NucleusFinder:
    """Finds nuclei: by the model where there is one and the image is not too large, else by `decoding`."""

    decoding: Decoding
    model: HistGradientBoostingRegressor | None
    params: Params

    def find(self, probabilities: NDArray[np.uint8], zoom: float) -> NDArray[np.int32]:
        """Return the label map (H, W) int32 of `probabilities` (S, H, W, 3), value / 255, seen at `zoom`."""
        candidates = candidates_of(probabilities, zoom, self.params) if self.model is not None else None
        if candidates is None:
            return decode_instances(average_zooms(probabilities), self.decoding)
        return choose_set(candidates, rate_candidates(self.model, candidates), self.params.select)

    def find_in_strips(self, strips: Iterable[NDArray[np.uint8]], shape: tuple[int, int]) -> NDArray[np.int32]:
        """Return what `find` does of an image that `is_large`, from strips (rows, W, 3) of its mean over zooms.

        Args:
            strips: from the top on, value / 255; read as they are needed.
            shape: H and W of the image.
        """
        return decode_strips(strips, shape, self.decoding)


def load_finder(decoding: Path, candidates: Path, params: Params) -> NucleusFinder:
    """Return what finds the nuclei of images that no fold saw: from all images of the cross-validation.

    Raises:
        InputError: a file is missing or damaged.
    """
    choice = read_decodings(decoding)["all"]
    pack = Pack(candidates)
    names = sorted(name.removesuffix(".worth") for name in pack if name.endswith(".worth"))
    return NucleusFinder(choice, fit_on(pack, names, params), params)


def fit_on(pack: Arrays, image_ids: Sequence[str], params: Params) -> HistGradientBoostingRegressor | None:
    """Fit the second-level model on stored candidates of some images; None where they have none.

    Raises:
        InputError: the candidates have other features than this code measures.
    """
    if params.select.trees == 0:
        return None
    features = [pack[f"{name}.features"] for name in image_ids]
    if not any(map(len, features)):
        return None
    if features[0].shape[1] != len(FEATURES):
        raise InputError(f"candidates with {features[0].shape[1]} features, not {len(FEATURES)}; run `evaluate` again")
    image = np.repeat(np.arange(len(features)), [len(each) for each in features])
    worth = np.concatenate([pack[f"{name}.worth"] for name in image_ids])
    return fit_model(np.concatenate(features), worth, image, params.select)


def find_nuclei(
    predictions: Arrays, image_ids: Sequence[str], finder: NucleusFinder, workers: int
) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (image_id, label_map (H, W) int32) of stored predictions."""
    # The array travels, not the pack: opening one again for each image would read its whole directory.
    jobs = ((finder, *read_prediction(predictions, name)) for name in image_ids)
    return zip(image_ids, map_in_order(_find_job, jobs, workers), strict=True)


def _find_job(job: tuple[NucleusFinder, NDArray[np.uint8], float]) -> NDArray[np.int32]:
    finder, probabilities, zoom = job
    return finder.find(probabilities, zoom)
