"""The second-level model: the worth of a candidate by hand, and sets that leave the bad ones out."""

import numpy as np
import pytest

from pipeline.nuclei.candidates import FEATURES, Candidates
from pipeline.nuclei.fitting import fit_trees, measure_worth
from pipeline.nuclei.metric import score
from pipeline.nuclei.selection import choose_set, list_decodings, rate_candidates


def make_candidates(shape, boxes):
    """Candidates that are boxes (top, bottom, left, right) of an image; their features are all 0."""
    runs, ends = [], []
    for top, bottom, left, right in boxes:
        runs += [(row * shape[1] + left, right - left) for row in range(top, bottom)]
        ends.append(len(runs))
    features = np.zeros((len(boxes), len(FEATURES)), np.float32)
    return Candidates(features, np.array(runs, np.int32).reshape(-1, 2), np.array(ends, np.int64), np.array(shape))


@pytest.fixture
def select(params):
    return params.select.model_copy(update={"min_worth": 0.3, "max_overlap": 0.25})


def test_pixels_are_those_of_the_runs():
    candidates = make_candidates((5, 6), [(1, 3, 2, 5), (0, 1, 0, 1)])
    np.testing.assert_array_equal(candidates.pixels_of(0), [8, 9, 10, 14, 15, 16])
    np.testing.assert_array_equal(candidates.pixels_of(1), [0])


def test_worth_is_the_share_of_thresholds_passed():
    truth = np.zeros((10, 20), np.uint16)
    truth[:, :10] = 7  # ids may have gaps
    boxes = [(0, 10, 0, 10), (0, 10, 0, 5), (0, 9, 0, 10), (0, 10, 0, 11), (0, 3, 12, 20), (0, 10, 0, 20)]
    # IoU 1; 0.5, not above the lowest threshold; 0.9, above eight; 10/11 = 0.909, above nine; none; 0.5.
    worth = measure_worth(make_candidates((10, 20), boxes), truth)
    np.testing.assert_allclose(worth, [1.0, 0.0, 0.8, 0.9, 0.0, 0.0])


def test_worth_is_the_score_of_an_image_of_one_nucleus():
    rng = np.random.default_rng(0)
    for _ in range(50):
        top, left = rng.integers(0, 5, 2)
        bottom, right = rng.integers(6, 12, 2)
        truth, predicted = np.zeros((12, 12), int), np.zeros((12, 12), int)
        truth[2:9, 1:10] = 1
        predicted[top:bottom, left:right] = 1
        (worth,) = measure_worth(make_candidates((12, 12), [(top, bottom, left, right)]), truth)
        assert worth == pytest.approx(score(truth, predicted))


def test_the_best_set_without_overlap_is_chosen(select):
    candidates = make_candidates((10, 20), [(0, 10, 0, 20), (0, 10, 0, 10), (0, 10, 10, 20), (0, 2, 0, 2)])
    chosen = choose_set(candidates, np.array([0.5, 0.9, 0.8, 0.7]), select).label_map
    np.testing.assert_array_equal(chosen[:, :10], 1)
    np.testing.assert_array_equal(chosen[:, 10:], 2)
    merged = choose_set(candidates, np.array([0.95, 0.9, 0.8, 0.7]), select).label_map
    np.testing.assert_array_equal(merged, 1)


def test_a_slight_overlap_is_given_to_the_better_one(select):
    candidates = make_candidates((4, 20), [(0, 4, 0, 10), (0, 4, 8, 20), (0, 4, 6, 12)])
    chosen, indices = choose_set(candidates, np.array([0.8, 0.9, 0.7]), select)
    assert indices == [1, 0]
    # The second, worth more, takes its 12 columns; the first keeps 8 of its 10; of the third nothing is free.
    np.testing.assert_array_equal(chosen[0], [2] * 8 + [1] * 12)


def test_candidates_of_little_worth_are_dropped(select):
    candidates = make_candidates((4, 20), [(0, 4, 0, 10), (0, 4, 10, 20)])
    np.testing.assert_array_equal(np.unique(choose_set(candidates, np.array([0.31, 0.29]), select).label_map), [0, 1])
    assert not choose_set(candidates, np.array([0.1, 0.2]), select).label_map.any()
    assert not choose_set(make_candidates((4, 20), []), np.zeros(0), select).label_map.any()


def test_the_model_learns_what_tells_good_from_bad_and_is_the_same_every_time(select):
    rng = np.random.default_rng(0)
    features = rng.random((3000, len(FEATURES)), np.float32)
    agreement = features[:, FEATURES.index("agreement")]
    image = np.repeat(np.arange(30), 100)
    model, again = (fit_trees(features, agreement, image, select) for _ in range(2))
    candidates = make_candidates((4, 20), [(0, 4, 0, 1)] * 500)
    candidates.features[:] = rng.random((500, len(FEATURES)))
    rated = rate_candidates(model, candidates)
    assert np.corrcoef(rated, candidates.features[:, FEATURES.index("agreement")])[0, 1] > 0.95
    np.testing.assert_array_equal(rated, rate_candidates(again, candidates))
    assert rate_candidates(model, make_candidates((4, 20), [])).shape == (0,)


def test_candidates_come_from_all_combinations_of_thresholds(select):
    decodings = list_decodings(select)
    assert len(set(decodings)) == len(select.seed_threshold) * len(select.mask_threshold)
