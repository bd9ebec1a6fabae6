"""The second-level model: which candidates are nuclei. It predicts how well each one matches, and keeps the best set.

In: candidates of images. Out: label maps. A candidate's worth is the share of the competition's ten IoU thresholds that
it passes; gradient-boosted trees predict it from the candidate's features, as `fitting` taught them. Sets are chosen
greedily: the best candidate first, then whatever does not overlap what was chosen.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.nuclei.candidates import Candidates
from pipeline.nuclei.decoding import Decoding
from pipeline.nuclei.trees import Trees
from pipeline.params import SelectParams


def list_decodings(params: SelectParams) -> list[Decoding]:
    """Return the decodings that candidates come from: all combinations of the thresholds."""
    grid = product(params.seed_threshold, params.mask_threshold)
    return [Decoding(seed, params.boundary_weight, mask, params.min_area_px) for seed, mask in grid]


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


def rate_candidates(trees: Trees, candidates: Candidates) -> NDArray[np.float64]:
    """Return the predicted worth (n,) of candidates, not bounded to [0, 1]."""
    return trees.predict(candidates.features)
