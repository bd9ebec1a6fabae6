"""How often each member of an ensemble counts, chosen on out-of-fold predictions.

In: the members' predictions, true label maps, and the fold of each image. Out: weights, for each fold chosen on the
images of the others, so that no image is scored with weights chosen on itself.

Source: Caruana et al. 2004, "Ensemble selection from libraries of models" (doi:10.1145/1015330.1015432), section 2.1:
forward selection with replacement.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.folds.blend import Members, Picks, Weights
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.tuning import count_decodings, cross_fit, decoding_grid, score_decodings
from pipeline.params import DecodeParams

_MOST_PICKS = 6


def choose_weights(
    members: Members,
    split: PreparedSplit,
    fold_of: Mapping[str, int],
    decode: DecodeParams,
    workers: int,
) -> Weights:
    """Return the weights with which the members' mean scores most, by the decoding that equal weights ask for.

    A blend grows by the member with which it scores most, until none improves it, or it has six.

    Args:
        members: their out-of-fold predictions.
        split: the images, with their label maps.
        fold_of: the fold of each image.
        decode: the decodings to choose from.
        workers: processes.
    """
    image_ids, places = split.image_ids, np.array([fold_of[image_id] for image_id in split.image_ids])
    choices, names = decoding_grid(decode), list(members.stored)

    def score(picks: Picks, tried: Sequence[int]) -> NDArray[np.float64]:
        predictions = members.blend(picks)
        items = ((name, predictions[name][0], split.label_map(name)) for name in image_ids)
        return score_decodings(count_decodings(items, [choices[one] for one in tried], workers, len(image_ids)))

    fit = cross_fit(score(dict.fromkeys(names, 1), range(len(choices))), places)
    tried = sorted({fit.on_all, *fit.on_others.values()})
    known: dict[tuple[tuple[str, int], ...], NDArray[np.float64]] = {}

    def score_on(picks: Picks, chosen: int, is_used: NDArray[np.bool_]) -> float:
        key = tuple(sorted(picks.items()))
        if key not in known:
            known[key] = score(picks, tried)
        return float(known[key][is_used, tried.index(chosen)].mean())

    def grow(chosen: int, is_used: NDArray[np.bool_]) -> Picks:
        picks: Picks = {}
        best = -1.0
        while sum(picks.values()) < _MOST_PICKS:
            grown = [{**picks, name: picks.get(name, 0) + 1} for name in names]
            scores = [score_on(each, chosen, is_used) for each in grown]
            if max(scores) <= best:
                break
            best = max(scores)
            picks = grown[scores.index(best)]
        return {name: picks[name] for name in names if name in picks}

    on_others = {fold: grow(chosen, places != fold) for fold, chosen in fit.on_others.items()}
    return Weights(grow(fit.on_all, np.ones(len(places), bool)), on_others)
