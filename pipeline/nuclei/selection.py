"""The second-level model: which candidates are nuclei. It predicts how well each one matches, and keeps the best set.

In: candidates of images, and for training their true label maps. Out: label maps. A candidate's worth is the share of
the competition's ten IoU thresholds that it passes; gradient-boosted trees predict it from the candidate's features.
Sets are chosen greedily: the best candidate first, then whatever does not overlap what was chosen.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from pipeline.nuclei.candidates import Candidates
from pipeline.nuclei.decoding import Decoding
from pipeline.nuclei.metric import pass_thresholds
from pipeline.params import SelectParams

Floats = NDArray[np.float32]


def list_decodings(params: SelectParams) -> list[Decoding]:
    """Return the decodings that candidates come from: all combinations of the thresholds."""
    grid = product(params.seed_threshold, params.mask_threshold)
    return [Decoding(seed, params.boundary_weight, mask, params.min_area_px) for seed, mask in grid]


def measure_worth(candidates: Candidates, truth: NDArray[np.integer]) -> Floats:
    """Return (n,) float32 in [0, 1]: the share of the ten thresholds that each candidate's best IoU is above.

    Args:
        candidates: of one image.
        truth: (H, W) integers, 0 background.
    """
    flat = truth.ravel()
    areas = np.bincount(flat)
    worth = np.zeros(len(candidates), np.float32)
    for index in range(len(candidates)):
        pixels = candidates.pixels_of(index)
        shared = np.bincount(flat[pixels])
        shared[0] = 0
        best = int(shared.argmax())
        union = len(pixels) + areas[best] - shared[best]
        worth[index] = pass_thresholds(shared[best], union).mean() if shared[best] else 0.0
    return worth


def fit_model(
    features: Floats, worth: Floats, image: NDArray[np.integer], params: SelectParams
) -> HistGradientBoostingRegressor:
    """Fit the trees that predict the worth of candidates.

    Args:
        features: (n, len(FEATURES)) float32.
        worth: (n,) float32 in [0, 1], of `measure_worth`.
        image: (n,) integers, which image a candidate is of. The score is a mean over images: candidates of an image
            with many count less, by the square root of their number.
        params: the section `select`.
    """
    model = HistGradientBoostingRegressor(
        max_iter=params.trees,
        learning_rate=params.learning_rate,
        max_leaf_nodes=params.leaves,
        min_samples_leaf=params.leaf_candidates,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=params.seed,
    )
    counts = np.bincount(image)[image]
    return model.fit(features, worth, sample_weight=1 / np.sqrt(counts))


class Chosen(NamedTuple):
    """The label map (H, W) int32 of the candidates that were chosen, ids 1..N, and their N indices in that order."""

    label_map: NDArray[np.int32]
    indices: list[int]


def choose_set(candidates: Candidates, worth: NDArray[np.floating], params: SelectParams) -> Chosen:
    """Return the best candidates that do not overlap, by falling worth.

    A candidate of which more than `max_overlap` is taken already is left out; else it gets the pixels that are free.
    """
    label_map = np.zeros(candidates.shape[0] * candidates.shape[1], np.int32)
    indices: list[int] = []
    for index in np.argsort(-worth, kind="stable"):
        if worth[index] < params.min_worth:
            break
        pixels = candidates.pixels_of(int(index))
        free = pixels[label_map[pixels] == 0]
        if len(free) >= (1 - params.max_overlap) * len(pixels):
            indices.append(int(index))
            label_map[free] = len(indices)
    return Chosen(label_map.reshape(tuple(candidates.shape)), indices)


def rate_candidates(model: HistGradientBoostingRegressor, candidates: Candidates) -> NDArray[np.float64]:
    """Return the predicted worth (n,) of candidates, not bounded to [0, 1]."""
    return model.predict(candidates.features) if len(candidates) else np.zeros(0)
