import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.experiments.compare import compare_runs, format_comparison, judge_difference
from pipeline.params import EvaluateParams

PARAMS = EvaluateParams(bootstrap=500, seed=1)


def frame(ap, fold=None, group=None, image_type=None, first=0):
    n = len(ap)
    return pd.DataFrame(
        {
            "image_id": [f"i{first + k:03d}" for k in range(n)],
            "group": group if group is not None else [f"g{first + k}" for k in range(n)],
            "fold": fold if fold is not None else [k % 2 for k in range(n)],
            "image_type": image_type if image_type is not None else ["fluorescence"] * n,
            "ap": np.asarray(ap, dtype=float),
        }
    )


def test_four_images_by_hand():
    a = frame([0.1, 0.2, 0.3, 0.4], image_type=["x", "x", "x", "y"])
    b = frame([0.2, 0.4, 0.4, 0.8], image_type=["x", "x", "x", "y"])
    result = compare_runs({"A": a, "B": b}, PARAMS)
    run = result.runs[0]
    assert (run.images, run.mean, run.folds) == (4, pytest.approx(0.25), {0: pytest.approx(0.2), 1: pytest.approx(0.3)})
    assert run.std == pytest.approx(0.1 / np.sqrt(2))
    (difference,) = result.differences
    assert difference.mean == pytest.approx(0.2)
    assert difference.folds == {0: pytest.approx(0.1), 1: pytest.approx(0.3)}
    # Fold differences 0.1 and 0.3: variance 0.02, held out 1/2, t = 0.2 / sqrt((1/2 + 1) * 0.02).
    assert difference.t == pytest.approx(0.2 / np.sqrt(0.03))
    assert difference.types == {"x": (pytest.approx(0.4 / 3), 3), "y": (pytest.approx(0.4), 1)}
    assert difference.low is not None
    assert 0.1 <= difference.low <= 0.2 <= difference.high <= 0.4
    assert difference.notes == ()


def test_rows_in_another_order_change_nothing():
    a, b = frame(np.linspace(0.1, 0.9, 12)), frame(np.linspace(0.2, 0.8, 12))
    assert compare_runs({"A": a, "B": b}, PARAMS) == compare_runs(
        {"A": a, "B": b.sample(frac=1, random_state=0)}, PARAMS
    )


def test_a_steady_gain_is_supported_and_noise_is_not():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.6, 100)
    fold = np.arange(100) % 5
    frames = {
        "A": frame(base, fold),
        "better": frame(base + 0.05 + rng.normal(0, 0.01, 100), fold),
        "noise": frame(base + rng.normal(0, 0.05, 100), fold),
        "worse": frame(base - 0.05 + rng.normal(0, 0.01, 100), fold),
    }
    better, noise, worse = (d.verdict for d in compare_runs(frames, PARAMS).differences)
    assert better.startswith("better is better than A by 0.0")
    assert better.endswith("the difference is supported")
    assert "not distinguishable" in noise
    assert worse.startswith("worse is worse than A by 0.0")
    assert worse.endswith("the difference is supported")


def test_a_run_against_itself():
    a = frame([0.1, 0.2, 0.3, 0.4])
    (difference,) = compare_runs({"A": a, "B": a}, PARAMS).differences
    assert difference.verdict == "B and A score the common images alike: no difference"
    assert difference.p == 1


def test_other_image_sets_are_said_and_intersected():
    a, b = frame([0.1] * 6), frame([0.2] * 6, first=2)
    (difference,) = compare_runs({"A": a, "B": b}, PARAMS).differences
    assert difference.images == 4
    assert "2 images only in A, 2 only in B" in difference.notes[0]
    assert difference.p is not None


@pytest.mark.parametrize("change", [{"fold": [1, 0, 1, 0]}, {"group": ["g0", "g0", "g2", "g3"]}])
def test_other_fold_tables_are_said_and_not_tested_over_folds(change):
    a, b = frame([0.1, 0.2, 0.3, 0.4]), frame([0.2, 0.3, 0.4, 0.5], **change)
    comparison = compare_runs({"A": a, "B": b}, PARAMS)
    (difference,) = comparison.differences
    assert difference.p is None
    assert difference.folds == {}
    assert difference.mean == pytest.approx(0.1)
    assert "the fold tables differ" in format_comparison(comparison)
    assert "folds were not tested" in difference.verdict


def test_one_group_allows_no_interval():
    a, b = (frame(ap, group=["g"] * 4) for ap in ([0.1] * 4, [0.9] * 4))
    (difference,) = compare_runs({"A": a, "B": b}, PARAMS).differences
    assert difference.low is None
    assert "too few" in difference.verdict


def test_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="no image in common"):
        compare_runs({"A": frame([0.1, 0.2]), "B": frame([0.1, 0.2], first=5)}, PARAMS)
    with pytest.raises(InputError, match="no run"):
        compare_runs({}, PARAMS)


def test_verdict_where_images_and_folds_disagree():
    words = judge_difference("A", "B", 0.02, 0.01, 0.03, 0.2)
    assert words.startswith("B is better than A by 0.020 (95 % interval 0.010 .. 0.030; corrected p = 0.20)")
    assert "the folds do not yet" in words
    assert "not distinguishable" in judge_difference("A", "B", 0.02, -0.01, 0.03, 0.01)
    assert "interval 0.010 .. 0.030" in judge_difference("A", "B", -0.02, -0.03, -0.01, 0.0001)


def test_text_lines_up():
    frames = {"base": frame([0.1, 0.2, 0.3, 0.4]), "a longer name": frame([0.5] * 3, fold=[0, 1, 2])}
    text = format_comparison(compare_runs(frames, PARAMS))
    head, base, longer = text.splitlines()[:3]
    assert head.split() == ["run", "images", "fold", "0", "fold", "1", "fold", "2", "mean", "+-", "std"]
    assert base.split() == ["base", "4", "0.200", "0.300", "-", "0.250", "0.071"]
    assert len(head) == len(base) == len(longer)


def test_what_is_known_of_unseen_acquisitions_has_a_column():
    frames = {"base": frame([0.1, 0.2, 0.3, 0.4]), "other": frame([0.5] * 4)}
    comparison = compare_runs(frames, PARAMS, {"base": None, "other": 0.25})
    assert [run.unseen_map for run in comparison.runs] == [None, 0.25]
    head, base, other = format_comparison(comparison).splitlines()[:3]
    assert (head.split()[-1], base.split()[-1], other.split()[-1]) == ("unseen_map", "-", "0.250")
    assert len(head) == len(base) == len(other)
    assert comparison.differences == compare_runs(frames, PARAMS).differences
    none = compare_runs(frames, PARAMS, {"base": None, "other": None})
    assert none == compare_runs(frames, PARAMS)
    assert "unseen_map" not in format_comparison(none)


def test_one_run_alone_is_just_its_table():
    assert len(format_comparison(compare_runs({"A": frame([0.1, 0.2])}, PARAMS)).splitlines()) == 2
