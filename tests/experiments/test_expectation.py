"""The score to expect: hand-computed on four scored images and small test sets."""

import numpy as np
import pandas as pd
import pytest

from pipeline.experiments.expectation import expect_leaderboard
from pipeline.params import EvaluateParams

EVALUATE = EvaluateParams(bootstrap=200, seed=1, unseen_drop=0.2, unseen_drop_std=0.1)
SCORES = pd.DataFrame(
    {
        "image_id": list("abcd"),
        "group": list("wxyz"),
        "image_type": ["fluorescence", "brightfield", "fluorescence", "fluorescence"],
        "ap": [1, 1 / 3, 0, 1],
    }
)


def make_images(types, size=(256, 256)):
    return pd.DataFrame({"image_type": np.array(types, dtype=object), "height": size[0], "width": size[1]})


TRAIN = make_images(SCORES["image_type"])


def expect(types, size=(256, 256), params=EVALUATE):
    return expect_leaderboard(SCORES, TRAIN, make_images(types, size), params)


def test_it_follows_the_test_sets_types():
    assert expect(["brightfield", "fluorescence"]).expected == pytest.approx((1 / 3 + 2 / 3) / 2)
    same = expect(SCORES["image_type"])
    assert same.expected == same.reweighted == pytest.approx(7 / 12)
    assert same.low <= same.expected <= same.high
    assert same.unseen_share == 0


def test_an_acquisition_that_training_lacks_costs_the_drop():
    test = pd.concat([make_images(["fluorescence"] * 3), make_images(["fluorescence"], (256, 320))])
    expected = expect_leaderboard(SCORES, TRAIN, test, EVALUATE)
    assert expected.unseen_share == 0.25
    assert expected.reweighted == pytest.approx(2 / 3)
    assert expected.expected == pytest.approx(2 / 3 - 0.25 * 0.2)


def test_a_type_at_a_known_frame_size_is_another_acquisition():
    expected = expect(["fluorescence", "colour_on_dark"])
    assert expected.unseen_share == 0.5
    assert expected.expected == pytest.approx(2 / 3 - 0.5 * 0.2)


def test_an_uncertain_drop_widens_the_interval():
    types, size = ["fluorescence"] * 500, (100, 100)
    sure, unsure = (expect(types, size, EVALUATE.model_copy(update={"unseen_drop_std": std})) for std in (0.0, 0.3))
    assert unsure.high - unsure.low > sure.high - sure.low


@pytest.mark.parametrize("types", [[], ["colour_on_dark"]])
def test_without_a_known_type_the_plain_score_is_reweighted(types):
    assert expect(types).reweighted == pytest.approx(7 / 12)
