"""How the second level learns which candidates are nuclei.

In: candidates of labelled images. Out: their worth, and trees that predict it.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from pipeline.nuclei.candidates import Candidates
from pipeline.nuclei.metric import pass_thresholds
from pipeline.nuclei.trees import Trees, take_trees
from pipeline.params import SelectParams

Floats = NDArray[np.float32]


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


def fit_trees(features: Floats, worth: Floats, image: NDArray[np.integer], params: SelectParams) -> Trees:
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
    return take_trees(model.fit(features, worth, sample_weight=1 / np.sqrt(counts)))
