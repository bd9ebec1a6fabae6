import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.errors import InputError
from pipeline.experiments.statistics import bootstrap_interval, corrected_paired_test, paired_bootstrap


def test_two_groups_give_three_possible_means():
    # Drawing two of the groups {0} and {1, 1, 1}: means 0 (1/4), 3/4 (1/2), 1 (1/4); weighting by group would say 1/2.
    assert bootstrap_interval([0, 1, 1, 1], ["a", "b", "b", "b"], 4000, 0) == (0.0, 1.0)
    assert bootstrap_interval([0, 1, 1, 1], ["a", "b", "b", "b"], 4000, 0, level=0.4) == (0.75, 0.75)


def test_weights_weigh_images():
    assert bootstrap_interval([0, 1], ["a", "b"], 4000, 0, weights=[3, 1], level=0.4) == (0.25, 0.25)


def test_groups_of_one_agree_with_scipy():
    values = np.random.default_rng(1).normal(0.5, 0.2, 80)
    ours = bootstrap_interval(values, np.arange(80), 20000, 0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_images_that_repeat_within_a_group_add_no_certainty():
    values = np.random.default_rng(1).normal(0.5, 0.2, 30)
    alone = bootstrap_interval(values, np.arange(30), 500, 7)
    four_times = bootstrap_interval(np.repeat(values, 4), np.repeat(np.arange(30), 4), 500, 7)
    assert four_times == pytest.approx(alone)
    low, high = bootstrap_interval(np.repeat(values, 4), np.arange(120), 500, 7)
    assert high - low < 0.7 * (alone[1] - alone[0])


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=2, max_size=20), st.floats(-2, 2))
def test_the_interval_lies_within_the_values_and_moves_with_them(rows, shift):
    values, groups = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(groups)) < 2:
        return
    low, high = bootstrap_interval(values, groups, 50, 3)
    assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12
    assert bootstrap_interval(values + shift, groups, 50, 3) == pytest.approx((low + shift, high + shift))


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        groups = np.repeat(np.arange(40), 3)
        values = np.repeat(rng.normal(size=40), 3) + 0.3 * rng.normal(size=120)
        low, high = bootstrap_interval(values, groups, 300, trial)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 300 <= 0.98


@pytest.mark.parametrize(
    ("values", "groups", "weights", "words"),
    [
        ([0.5, math.nan], [0, 1], None, "not finite"),
        ([0.5, 0.5], [0, 0], None, "two independent groups"),
        ([], [], None, "two independent groups"),
        ([0.5, 0.6], [0, 1], [1, 0], "not above 0"),
    ],
)
def test_what_cannot_be_resampled_is_refused(values, groups, weights, words):
    with pytest.raises(InputError, match=words):
        bootstrap_interval(values, groups, 10, 0, weights=weights)


def test_paired_bootstrap_is_the_interval_of_the_differences():
    first, second, groups = [0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.5, 0.3], [0, 1, 2, 3]
    mean, low, high = paired_bootstrap(first, second, groups, 200, 5)
    assert mean == pytest.approx(0.05)
    assert (low, high) == pytest.approx(bootstrap_interval([0.1, 0, 0.2, -0.1], groups, 200, 5))


def test_corrected_test_by_hand():
    # mean 0.02, variance 1e-4, k = 3, held out 1/3: t = 0.02 / sqrt((1/3 + 1/2) * 1e-4) = 2.19089;
    # with two degrees of freedom p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(4.8 / 6.8).
    statistic, p = corrected_paired_test([0.01, 0.02, 0.03], 1 / 3)
    assert statistic == pytest.approx(2.19089, abs=1e-5)
    assert p == pytest.approx(1 - math.sqrt(4.8 / 6.8))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10).filter(lambda d: np.std(d) > 1e-6))
def test_without_correction_it_is_scipys_and_with_it_more_careful(differences):
    plain = stats.ttest_1samp(differences, 0)
    statistic, p = corrected_paired_test(differences, 0)
    assert (statistic, p) == pytest.approx((plain.statistic, plain.pvalue), rel=1e-6, abs=1e-12)
    assert corrected_paired_test(differences, 1 / len(differences))[1] >= p


def test_equal_differences():
    assert corrected_paired_test([0.0, 0.0], 0.5) == (0.0, 1.0)
    assert corrected_paired_test([-0.5, -0.5], 0.5) == (-math.inf, 0.0)


@pytest.mark.parametrize(("differences", "share"), [([0.1], 0.5), ([], 0.5), ([0.1, 0.2], 1.0), ([0.1, 0.2], -0.1)])
def test_corrected_test_refuses(differences, share):
    with pytest.raises(InputError):
        corrected_paired_test(differences, share)
