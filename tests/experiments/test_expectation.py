"""The score to expect: it follows the signals, the run's own images, and falls back to the cross-validation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from pipeline.errors import InputError
from pipeline.experiments.calibration import SIGNALS
from pipeline.experiments.expectation import expect_leaderboard, read_expected, read_known, read_signals
from pipeline.params import EvaluateParams

EVALUATE = EvaluateParams(bootstrap=200, seed=1)


def make_images(count: int, height: int = 256, seed: int = 0, drop: float = 0.0) -> pd.DataFrame:
    """Return images whose score is the worth that is told of them, less `drop`."""
    rng = np.random.default_rng(seed)
    worth = rng.uniform(0.2, 0.8, count)
    table = pd.DataFrame({name: worth if name == "worth" else 0.5 for name in SIGNALS}, index=range(count))
    names = [f"i{seed}-{number}" for number in range(count)]
    described = {"image_id": names, "group": names, "image_type": "fluorescence", "height": height, "width": 320}
    return table.assign(**described, ap=(worth - drop).clip(0, 1))


KNOWN = pd.concat(
    make_images(20, seed=seed).assign(cluster=f"c{seed}", is_seen=number < 10)
    for seed in range(1, 6) for number in (0, 99)
)  # fmt: skip
OWN = pd.concat([make_images(30, height, seed=height) for height in (256, 360, 520)])


def test_it_follows_the_signals_of_the_images_themselves() -> None:
    test = make_images(40, 1040, seed=7)
    expectation = expect_leaderboard(test, OWN, KNOWN, EVALUATE)
    assert expectation.expected == pytest.approx(test["ap"].mean(), abs=0.01)
    assert expectation.images["image_id"].tolist() == test["image_id"].tolist()
    np.testing.assert_allclose(expectation.images["expected"], test["ap"], atol=0.03)
    assert expectation.low <= expectation.expected <= expectation.high
    # An image alone is known less well than their mean.
    assert (expectation.images["high"] - expectation.images["low"]).min() >= expectation.high - expectation.low


def test_the_runs_own_images_weigh_in() -> None:
    test = make_images(40, seed=7)
    worse = pd.concat([make_images(30, height, seed=height, drop=0.2) for height in (256, 360, 520)])
    first, second = (expect_leaderboard(test, own, KNOWN, EVALUATE).expected for own in (OWN, worse))
    assert second < first - 0.04


def test_an_image_without_signals_counts_as_the_mean_of_the_others() -> None:
    test = make_images(10, seed=7)
    blind = test.assign(**{name: test[name].where(test.index != 3) for name in SIGNALS})
    expectation = expect_leaderboard(blind, OWN, KNOWN, EVALUATE)
    assert expectation.images["expected"].isna().tolist() == [number == 3 for number in range(10)]
    assert expectation.expected == pytest.approx(expectation.images["expected"].mean())


def test_an_image_in_which_nothing_was_found_is_expected_to_score_0() -> None:
    test = make_images(10, seed=7)
    empty = test.assign(**{name: test[name].where(test.index != 3, 0.0) for name in SIGNALS})
    images = expect_leaderboard(empty, OWN, KNOWN, EVALUATE).images
    assert images["expected"].eq(0).tolist() == [number == 3 for number in range(10)]


def test_known_images_in_which_nothing_was_found_teach_nothing() -> None:
    """Of five known acquisitions two are left that teach: too few, so the cross-validation's score is expected."""
    is_empty = KNOWN["cluster"].isin(["c1", "c2", "c3"]).to_numpy()
    known = KNOWN.assign(**{name: np.where(is_empty, 0.0, KNOWN[name]) for name in SIGNALS})
    expectation = expect_leaderboard(make_images(10, seed=7), OWN, known, EVALUATE)
    assert expectation.expected == pytest.approx(OWN["ap"].mean())
    assert expectation.images["expected"].isna().all()


@pytest.mark.parametrize("blind", ["test", "own", "none to predict"])
def test_without_signals_the_cross_validation_is_expected(blind: str) -> None:
    test, own = make_images(0 if blind == "none to predict" else 10, seed=7), OWN
    nothing = dict.fromkeys(SIGNALS, np.nan)
    expectation = expect_leaderboard(
        test.assign(**nothing) if blind == "test" else test, own.assign(**nothing) if blind == "own" else own,
        KNOWN, EVALUATE,
    )  # fmt: skip
    assert expectation.expected == pytest.approx(OWN["ap"].mean())
    assert expectation.low < expectation.expected < expectation.high
    assert expectation.images["expected"].isna().all()
    assert len(expectation.images) == len(test)


def test_of_a_single_group_there_is_still_an_interval() -> None:
    own = OWN.assign(group="g", **dict.fromkeys(SIGNALS, np.nan))
    expectation = expect_leaderboard(make_images(10), own, KNOWN, EVALUATE)
    reach = norm.ppf(0.975) * OWN["ap"].std(ddof=0) / np.sqrt(10)
    assert expectation.high - expectation.expected == pytest.approx(reach)


def test_known_cases_are_read_and_looked_at(tmp_path) -> None:
    path, known = tmp_path / "known.csv", KNOWN.drop_duplicates(["cluster", "image_id"])
    known.to_csv(path, index=False)
    read = read_known(path)
    assert read["is_seen"].tolist() == known["is_seen"].tolist()
    assert read["ap"].tolist() == pytest.approx(known["ap"].tolist())
    for faulty, text in (
        (known.assign(is_seen="true"), "has is_seen 'true', not True or False"),
        (known.assign(ap="high"), "has ap 'high', not a number"),
        (pd.concat([known, known[4:5]]), "the cluster c1 has the image 'i1-4' twice"),
    ):
        faulty.to_csv(path, index=False)
        with pytest.raises(InputError, match=text):
            read_known(path)


def test_what_is_known_of_a_test_image_is_not_used() -> None:
    test = make_images(10, seed=1)
    told = KNOWN.assign(ap=KNOWN["ap"].where(~KNOWN["image_id"].isin(test["image_id"]), 0.0))
    first, second = (expect_leaderboard(test, OWN, known, EVALUATE).expected for known in (KNOWN, told))
    assert first == second


def test_signals_are_read_and_each_image_once(tmp_path) -> None:
    table = OWN[["image_id", *SIGNALS]].assign(image_id=[f"{number:03}" for number in range(len(OWN))])
    table.to_csv(tmp_path / "signals.csv", index=False)
    assert read_signals(tmp_path / "signals.csv")["image_id"].tolist() == table["image_id"].tolist()
    table[:0].to_csv(tmp_path / "signals.csv", index=False)
    assert read_signals(tmp_path / "signals.csv").empty
    pd.concat([table, table[3:4]]).to_csv(tmp_path / "signals.csv", index=False)
    with pytest.raises(InputError, match="image '003' is there twice"):
        read_signals(tmp_path / "signals.csv")


def test_expected_scores_are_read_with_what_is_not_known(tmp_path) -> None:
    path = tmp_path / "expected.csv"
    path.write_text("image_id,expected,low,high\nNA,0.5,0.25,0.75\n007,,,\n")
    table = read_expected(path)
    assert table["image_id"].tolist() == ["NA", "007"]
    assert table["expected"].tolist()[0] == 0.5
    assert table["expected"].isna().tolist() == [False, True]
    path.write_text("image_id,expected,low,high\na,much,0,1\n")
    with pytest.raises(InputError, match="not a table of expected scores"):
        read_expected(path)
