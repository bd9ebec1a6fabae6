"""The choice of weights: greedy, out of fold, and blind to the fold that it is for."""

import numpy as np
import pytest

from pipeline.folds.blend import Members
from pipeline.folds.weighing import choose_weights
from pipeline.images.splits import PreparedSplit

NAMES = "abcdef"
FOLD_OF = {name: number % 3 for number, name in enumerate(NAMES)}


@pytest.fixture
def split(make_split):
    return PreparedSplit.open(make_split(NAMES))


def predict(label_map, share=1.0, seed=0):
    """Return probabilities of a share of the nuclei, and of none of the others."""
    rng = np.random.default_rng(seed)
    kept = rng.random(int(label_map.max()) + 1) < share
    kept[0] = False
    foreground = kept[label_map].astype(np.uint8) * 250
    return np.stack([foreground, 0 * foreground, foreground], axis=-1)[None]


def members(split, **predictors):
    stored = {
        member: {name: (predict(label_map), 1.0) for name, label_map in split.label_maps()}
        for member, predict in predictors.items()
    }
    return Members(stored, dict.fromkeys(predictors, 24.0), 24.0)


def choose(split, params, **predictors):
    return choose_weights(members(split, **predictors), split, FOLD_OF, params.decode, 1)


def test_a_member_that_is_right_is_taken_and_one_that_is_wrong_left_out(split, params):
    weights = choose(split, params, wrong=lambda label_map: predict(label_map, 0.0), right=predict)
    assert weights.on_all == {"right": 1}
    assert weights.on_others == {fold: {"right": 1} for fold in range(3)}


def test_of_equals_the_first_is_taken(split, params):
    assert choose(split, params, one=predict, other=predict).on_all == {"one": 1}


def test_a_fold_s_own_truth_does_not_weigh(split, params):
    """`odd` is right in fold 0 alone: the weights for fold 0 know nothing of it."""

    def of_fold(folds):
        return {
            name: (predict(label_map, float(FOLD_OF[name] in folds)), 1.0) for name, label_map in split.label_maps()
        }

    stored = {"even": of_fold({1, 2}), "odd": of_fold({0})}
    weights = choose_weights(Members(stored, dict.fromkeys(stored, 24.0), 24.0), split, FOLD_OF, params.decode, 1)
    assert weights.on_others[0] == {"even": 1}
