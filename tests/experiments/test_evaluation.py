"""What is reported of the scores: hand-computed on a few images."""

import numpy as np
import pandas as pd
import pytest

from pipeline.experiments.evaluation import (
    AP_COLUMNS,
    describe_sizes,
    evaluate,
    format_fold_table,
    summarize_scores,
    tabulate_scores,
)
from pipeline.folds.blend import Weights
from pipeline.folds.cross_validation import describe_choices
from pipeline.nuclei.decoding import Decoding
from pipeline.nuclei.metric import Matches
from pipeline.nuclei.tuning import CrossFit
from pipeline.params import EvaluateParams, Params

EVALUATE = EvaluateParams(bootstrap=200, seed=1)


def matches(truth: int, prediction: int, hits: int) -> Matches:
    """All thresholds have the same number of hits."""
    return Matches(truth, prediction, np.full(10, hits))


@pytest.fixture
def images() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": list("abcd"),
            "group": list("wxyz"),
            "fold": [0, 0, 1, 1],
            "image_type": ["fluorescence", "brightfield", "fluorescence", "fluorescence"],
        }
    )


@pytest.fixture
def counts() -> list[Matches]:
    # AP: 1, 1/3, 0, 1 (nothing there, nothing found)
    return [matches(2, 2, 2), matches(2, 2, 1), matches(1, 1, 0), matches(0, 0, 0)]


def test_scores_and_summary_by_hand(images: pd.DataFrame, counts: list[Matches]) -> None:
    scores = tabulate_scores(images, counts)
    assert scores["ap"].tolist() == pytest.approx([1, 1 / 3, 0, 1])
    assert list(scores.columns) == ["image_id", "group", "fold", "image_type", "ap", *AP_COLUMNS]
    cv = summarize_scores(scores, counts, EVALUATE)
    assert cv["cv_map"] == pytest.approx(7 / 12)
    assert cv["folds"] == {"0": pytest.approx(2 / 3), "1": pytest.approx(1 / 2)}
    assert cv["cv_std"] == pytest.approx((2 / 3 - 1 / 2) / np.sqrt(2))
    assert cv["image_types"] == {"brightfield": pytest.approx(1 / 3), "fluorescence": pytest.approx(2 / 3)}
    # Five true, five predicted, three hits: 3 / (5 + 5 - 3).
    assert cv["pooled_ap"] == pytest.approx(3 / 7)
    assert cv["thresholds"]["95"] == pytest.approx(7 / 12)
    assert 0 <= cv["cv_low"] <= cv["cv_map"] <= cv["cv_high"] <= 1
    assert cv["images"] == 4


def test_the_fold_table_shows_folds_types_mean_and_std(images: pd.DataFrame, counts: list[Matches]) -> None:
    scores = tabulate_scores(images, counts)
    text = format_fold_table(scores, summarize_scores(scores, counts, EVALUATE))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["0"] == ["2", "0.667", "0.333", "1.000"]
    assert rows["1"] == ["2", "0.500", "-", "0.500"]
    assert rows["mean"] == ["0.583", "0.333", "0.750"]
    assert "cross-fitted CV over 4 images: 0.583 +- 0.118" in text


def test_what_was_chosen_is_named_by_fold() -> None:
    choices = [Decoding(0.5, 0.5, 0.5, 10), Decoding(0.6, 0.5, 0.5, 10)]
    weights = Weights({"a": 1}, {0: {"a": 2}, 1: {"b": 1}})
    described = describe_choices(choices, CrossFit(on_all=1, on_others={0: 0, 1: 1}), weights)
    assert described["members"] == {"all": {"a": 1}, "folds": {"0": {"a": 2}, "1": {"b": 1}}}
    assert described["all"]["seed_threshold"] == 0.6
    assert [described["folds"][fold]["seed_threshold"] for fold in ("0", "1")] == [0.5, 0.6]


def test_the_error_of_sizes_by_hand(params: Params) -> None:
    """Nuclei of 14 px want a zoom of 2 for 28 px: zooms of 2, 4 and 2.83 are 0, 1 and half an octave off."""
    area = np.pi * 7**2
    images = pd.DataFrame({"image_id": list("abcd"), "median_area_px": [area, area, area, 0.0]})
    size = params.size.model_copy(update={"object_diameter_px": 28.0, "min_zoom": 0.1, "max_zoom": 8.0})
    found = describe_sizes(images, {"a": 2.0, "b": 4.0, "c": 2 * 2**0.5, "d": 1.0}, size)
    assert found["size_error_octaves"] == pytest.approx(0.5)
    assert found["size_error_octaves_p90"] == pytest.approx(0.9)
    # A zoom of 1.5 at most: 2 is what it is off by then.
    narrow = describe_sizes(images[:1], {"a": 3.0}, size.model_copy(update={"max_zoom": 1.5}))
    assert narrow["size_error_octaves"] == pytest.approx(1)
    assert describe_sizes(images, {}, size.model_copy(update={"object_diameter_px": 0.0})) == {}


def test_an_evaluation_is_its_parts(images: pd.DataFrame, counts: list[Matches], params: Params) -> None:
    """The nuclei themselves are scored; what one decoding finds is a figure beside it, and so are the sizes."""
    images = images.assign(median_area_px=np.pi * 7**2)
    size = params.size.model_copy(update={"object_diameter_px": 28.0, "min_zoom": 0.1, "max_zoom": 8.0})
    decoded = [matches(1, 1, 1), matches(1, 0, 0), matches(1, 0, 0), matches(1, 0, 0)]
    scores, summary = evaluate(images, decoded, counts, dict.fromkeys("abcd", 4.0), size, EVALUATE)
    pd.testing.assert_frame_equal(scores, tabulate_scores(images, counts))
    parts = summarize_scores(scores, counts, EVALUATE) | {"one_decoding_map": 0.25}
    parts |= {"size_error_octaves": pytest.approx(1), "size_error_octaves_p90": pytest.approx(1)}
    assert summary == parts
    # The order in which cv.json has them.
    assert list(summary) == [
        *("cv_map", "cv_std", "cv_low", "cv_high", "pooled_ap", "images", "folds", "image_types", "thresholds"),
        *("one_decoding_map", "size_error_octaves", "size_error_octaves_p90"),
    ]
