"""Runs by what they find of unseen acquisitions: ranks, differences on common clusters, and what is said of them."""

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.experiments.compare_unseen import compare_unseen, format_unseen
from pipeline.experiments.comparisons import COMPARISONS
from pipeline.experiments.runs import Run
from pipeline.params import EvaluateParams
from tests.experiments.test_compare import frame

PARAMS = EvaluateParams(bootstrap=500, seed=1)


def clusters(values):
    return {f"dark{number}": value for number, value in enumerate(values)}


def test_six_clusters_by_hand():
    """Three differ by 0.4 and three by nothing: of six draws 0 to 6 are of the former, 1 to 5 in 97 of 100."""
    base = clusters([0.2, 0.4] * 3)
    result = compare_unseen({"A": base, "B": base | {"dark0": 0.6, "dark2": 0.6, "dark4": 0.6}}, PARAMS)
    assert result.runs == (("B", 6, pytest.approx(0.5)), ("A", 6, pytest.approx(0.3)))
    (difference,) = result.differences
    assert (difference.baseline, difference.name) == ("A", "B")
    assert difference.clusters == {f"dark{i}": pytest.approx(0.0 if i % 2 else 0.4) for i in range(6)}
    assert difference.mean == pytest.approx(0.2)
    assert (difference.low, difference.high) == (pytest.approx(0.4 / 6), pytest.approx(2.0 / 6))
    assert difference.notes == ()


def test_what_holds_on_all_clusters_is_told_from_what_does_not():
    base = np.linspace(0.1, 0.7, 13)
    runs = {name: clusters(base + delta) for name, delta in (("A", 0), ("up", 0.05), ("down", -0.05))}
    runs["noise"] = clusters(base + 0.1 * np.cos(np.arange(13) * np.pi))
    up, down, noise = (one.verdict for one in compare_unseen(runs, PARAMS).differences)
    assert up.startswith("up is better than A on unseen acquisitions: +0.050 (95 % interval +0.050 .. +0.050")
    assert down.startswith("down is worse than A on unseen acquisitions: -0.050")
    assert noise.startswith("noise and A are not distinguishable")
    (same,) = compare_unseen({"A": runs["A"], "B": runs["A"]}, PARAMS).differences
    assert same.verdict == "B and A score the common clusters alike: no difference"


def test_other_clusters_are_said_and_left_out():
    runs = {"A": {"dark": 0.2, "pale": 0.4, "pink": 0.9}, "B": {"dark": 0.3, "pale": 0.5, "blue": 0.1}}
    comparison = compare_unseen(runs, PARAMS)
    (difference,) = comparison.differences
    assert difference.mean == pytest.approx(0.1)
    assert difference.notes == ("only A has pink", "only B has blue")
    assert "note: only A has pink" in format_unseen(comparison)
    with pytest.raises(InputError, match="B and A have no cluster in common"):
        compare_unseen({"A": {"dark": 0.2}, "B": {"pale": 0.5}}, PARAMS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_clusters_allow_no_interval(count):
    """Five that all differ in one direction do so by mere chance once in 16 times."""
    runs = {"A": clusters(np.full(count, 0.2)), "B": clusters(np.full(count, 0.5))}
    (difference,) = compare_unseen(runs, PARAMS).differences
    assert (difference.mean, difference.low) == (pytest.approx(0.3), None)
    assert difference.verdict == "B less A is +0.300; common clusters are fewer than 6: too few to tell them apart"


def test_the_text_ranks_the_runs():
    text = format_unseen(compare_unseen({"A": {"dark": 0.2, "pale": 0.4}, "B": {"dark": 0.6, "pale": 0.4}}, PARAMS))
    assert [line.split() for line in text.splitlines()[:7]] == [
        ["run", "clusters", "unseen_map"], ["B", "2", "0.500"], ["A", "2", "0.300"], [],
        ["B", "less", "A,", "paired", "on", "2", "clusters"], ["dark", "+0.400"], ["pale", "+0.000"],
    ]  # fmt: skip


def test_runs_with_and_without_a_yardstick():
    scores = frame([0.1, 0.2, 0.3, 0.4])
    runs = {"A": Run(scores, {"unseen": {"dark": 0.2, "pale": 0.3}}), "old": Run(scores, {})}
    table = [line.split() for line in COMPARISONS["cv"](runs, PARAMS).splitlines()[:3]]
    assert table[0][-2:] == ["std", "unseen_map"]
    assert [row[-1] for row in table[1:]] == ["0.250", "-"]
    assert "unseen_map" not in COMPARISONS["cv"]({"old": runs["old"]}, PARAMS)
    with pytest.raises(InputError, match=r"^old: no unseen_map .*`python -m pipeline\.studies\.unseen` measures"):
        COMPARISONS["unseen"](runs, PARAMS)
