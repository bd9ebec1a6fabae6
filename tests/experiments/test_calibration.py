"""The score to expect from signals: by hand, what the interval holds, and how it is judged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.experiments.calibration import (
    SIGNALS,
    Calibration,
    _Line,
    fit_calibration,
    judge_calibration,
    list_cases,
)

WEIGHTS = np.array([0.8, 0.0, 0.2, 0.0, 0.0])


def make_cases(acquisitions: int, images: int, shared: float, seed: int = 0) -> pd.DataFrame:
    """Return images whose score is the worth and the agreement, off by what an acquisition shares and by chance."""
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(acquisitions):
        values = rng.uniform(0.2, 0.6, len(SIGNALS)) + rng.uniform(0, 0.4, (images, len(SIGNALS)))
        ap = values @ WEIGHTS + shared * rng.normal() + 0.02 * rng.normal(size=images)
        names = {"acquisition": f"a{number}", "case": f"a{number}"}
        parts.append(pd.DataFrame(values, columns=SIGNALS).assign(ap=ap.clip(0, 1), **names))
    return pd.concat(parts, ignore_index=True)


def make_seen(acquisitions: int) -> pd.DataFrame:
    """Return images that networks had seen the like of, which score 0.9: five for each left-out acquisition."""
    values = np.full((5 * acquisitions, len(SIGNALS)), 0.9)
    left_out = np.repeat([f"a{number}" for number in range(acquisitions)], 5)
    return pd.DataFrame(values, columns=SIGNALS).assign(ap=0.9, left_out=left_out, acquisition="seen")


NONE = make_seen(0)


def test_a_score_by_hand_and_within_its_bounds() -> None:
    calibration = Calibration(_Line(WEIGHTS, 0.1), image_std=0.1, acquisition_std=0.05, acquisitions=4, quantile=2.0)
    signals = pd.DataFrame([[0.5, 0, 0.5, 0, 0], [1, 9, 1, 9, 9], [-1, 0, 0, 0, 0]], columns=SIGNALS)
    images = calibration.score_images(signals.assign(image_id=["a", "b", "c"]))
    assert images["image_id"].tolist() == ["a", "b", "c"]
    assert images["expected"].tolist() == pytest.approx([0.6, 1, 0])
    reach = 2 * np.sqrt(0.1**2 + 0.05**2 * (1 + 1 / 4))
    assert images["low"].tolist() == pytest.approx([0.6 - reach, 1 - reach, 0])
    assert images["high"].tolist() == pytest.approx([0.6 + reach, 1, reach])
    # Two acquisitions of one image each, and one of both: of 0.05 ** 2 a half and the whole, and a quarter that the fit
    # is off by; of 0.1 ** 2 a half.
    two = calibration.expect(signals[:2], pd.Series(["a", "b"]))
    assert two.mean == pytest.approx(0.8)
    assert two.mean - two.low == pytest.approx(2 * np.sqrt(0.05**2 * (1 / 2 + 1 / 4) + 0.1**2 / 2))
    one = calibration.expect(signals[:2], pd.Series(["a", "a"]))
    assert one.mean - one.low == pytest.approx(2 * np.sqrt(0.05**2 * (1 + 1 / 4) + 0.1**2 / 2))
    assert calibration.expect(signals[1:2], pd.Series(["a"])).high == 1


def test_the_fit_finds_what_scores_follow_from_and_what_acquisitions_share() -> None:
    alone, sharing = (fit_calibration(make_cases(60, 30, shared=shared), NONE) for shared in (0.0, 0.08))
    assert alone.line.weights == pytest.approx(WEIGHTS, abs=0.05)
    assert alone.acquisition_std < 0.01
    assert alone.image_std == pytest.approx(0.02, rel=0.2)
    assert sharing.acquisition_std == pytest.approx(0.08, rel=0.3)
    assert alone.quantile == pytest.approx(2.001, abs=1e-3)  # Student's t, 59 degrees of freedom


def test_acquisitions_of_one_image_do_not_make_images_alike() -> None:
    cases = pd.concat(
        [make_cases(30, 20, shared=0.0), make_cases(30, 1, shared=0.0, seed=1).replace(r"^a", "b", regex=True)]
    )
    assert fit_calibration(cases, NONE).image_std == pytest.approx(0.02, rel=0.2)


def test_images_in_which_nothing_was_found_score_nothing_and_teach_nothing() -> None:
    cases = make_cases(30, 10, shared=0.05)
    empty = cases.assign(ap=0.0, **dict.fromkeys(SIGNALS, 0.0))[::10]
    with_them, without = (fit_calibration(known, NONE) for known in (pd.concat([cases, empty]), cases))
    assert with_them.line.weights.tolist() == without.line.weights.tolist()
    assert replace(with_them, line=without.line) == without
    together = pd.concat([cases[:1], empty[:1]])
    assert with_them.line.score(together).tolist() == [without.line.score(cases[:1])[0], 0.0]


def test_it_is_judged_by_acquisitions_that_it_was_not_fitted_on() -> None:
    cases, seen = make_cases(15, 10, shared=0.05), make_seen(15)
    judged = judge_calibration(cases, seen)
    error = (judged["ap"] - judged["expected"]).abs().mean()
    assert error < 0.07
    assert error < (judged["ap"] - judged["constant"]).abs().mean()
    assert judged["ap"].between(judged["low"], judged["high"]).mean() > 0.9
    # Whatever one acquisition's truth is, what is expected of it stays.
    changed = cases.assign(ap=cases["ap"].where(cases["acquisition"] != "a7", 1.0))
    again = judge_calibration(changed, seen).set_index("case")
    for what in ("expected", "low", "high", "constant"):
        assert again.loc["a7", what] == judged.set_index("case").loc["a7", what]


def test_cases_are_the_left_out_images_of_a_cluster_and_those_of_each_probe() -> None:
    known = pd.DataFrame(
        [("c", "x", False), ("c", "y", True), ("c", "probe_small/x", False)], columns=["cluster", "image_id", "is_seen"]
    )
    cases = list_cases(known)
    assert cases["case"].tolist() == ["c", "c probe_small"]
    assert cases["acquisition"].tolist() == ["c", "c"]
