"""The score: hand-computed cases, StarDist as the oracle, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from stardist.matching import matching, matching_dataset

from pipeline.errors import InputError
from pipeline.nuclei.metric import average_precision, count_matches, pooled_average_precision, score, tabulate_overlap

THRESHOLDS = np.arange(10, 20) / 20
LABEL_MAPS = npst.arrays(np.int32, (6, 7), elements=st.integers(0, 5))


def strictly(threshold):
    """StarDist matches at IoU >= threshold, in float32; the competition at IoU > threshold."""
    return float(np.nextafter(np.float32(threshold), np.float32(1)))


def draw_pair(rng, n):
    """Rectangles at random, and the same moved by a pixel or two, with some dropped and others invented."""
    truth, prediction = np.zeros((2, 60, 70), np.int32)
    for label in rng.permutation(n) + 1:
        height, width = rng.integers(1, 12, 2)
        row, column = rng.integers(0, 58), rng.integers(0, 68)
        truth[row : row + height, column : column + width] = label
        if rng.random() < 0.8:
            down, right = rng.integers(0, 2, 2)
            prediction[row + down : row + down + height, column + right : column + right + width] = label + 3
    return truth, prediction


@pytest.mark.parametrize("seed", range(120))
def test_equals_stardist(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = draw_pair(rng, int(rng.integers(1, 30)))
    if seed % 10 == 0:
        truth[truth > 0] += 90_000  # gaps wider than the image has pixels
    if seed % 10 == 1:
        prediction[:] = 0
    if seed % 10 == 2:
        truth[:] = 0
    if seed % 10 == 3:
        truth *= 1000
    expected = [matching(truth, prediction, strictly(t)) for t in THRESHOLDS]
    matches = count_matches(truth, prediction)
    assert matches.true_positives.tolist() == [e.tp for e in expected]
    assert (matches.n_truth, matches.n_prediction) == (expected[0].n_true, expected[0].n_pred)
    if truth.any() or prediction.any():  # of two empty maps StarDist's accuracy is 0, the competition's 1
        np.testing.assert_allclose(average_precision(matches), [e.accuracy for e in expected])


def test_equals_stardist_with_400_nuclei_of_any_id():
    rng = np.random.default_rng(0)
    truth = np.kron(np.arange(1, 401).reshape(20, 20), np.ones((6, 6), np.int64)).astype(np.uint16)
    prediction = np.roll(truth, 1, axis=1)
    prediction[rng.random(truth.shape) < 0.1] = 0
    expected = [matching(truth, prediction, strictly(t)).accuracy for t in THRESHOLDS]
    np.testing.assert_allclose(average_precision(count_matches(truth, prediction)), expected)
    ids = np.append(0, rng.permutation(60_000)[:400] + 1)
    assert score(ids[truth], np.append(0, ids[:0:-1])[prediction]) == pytest.approx(np.mean(expected))


def test_an_iou_of_exactly_the_threshold_is_no_match():
    truth, prediction = np.zeros((2, 1, 20), np.uint8)
    truth[0, :20] = 1
    prediction[0, :15] = 1
    assert count_matches(truth, prediction).true_positives.tolist() == [1] * 5 + [0] * 5


def test_hand_computed():
    truth = np.array([[1, 1, 0, 2, 2, 2, 0, 3]])
    prediction = np.array([[5, 5, 0, 9, 9, 0, 0, 0]])
    # IoU 1 and 2/3, and a missed one: 2 of 3 up to 0.65, then 1 of 4.
    expected = [2 / 3] * 4 + [1 / 4] * 6
    np.testing.assert_allclose(average_precision(count_matches(truth, prediction)), expected)
    assert score(truth, prediction) == pytest.approx(np.mean(expected))


def test_nothing_found_where_nothing_is_scores_one():
    empty, one = np.zeros((4, 5), np.int32), np.eye(4, 5, dtype=np.int32)
    assert score(empty, empty) == 1
    assert score(empty, one) == score(one, empty) == 0
    assert score(np.zeros((0, 3), np.int32), np.zeros((0, 3), np.int32)) == 1


def test_single_pixels():
    truth = np.arange(12).reshape(3, 4)
    assert score(truth, truth) == 1
    # Moved by a pixel the background falls on one nucleus: ten hits, one miss, one false alarm.
    assert score(truth, np.roll(truth, 1)) == pytest.approx(10 / 12)


@given(LABEL_MAPS, LABEL_MAPS)
def test_symmetric_bounded_and_perfect_on_itself(truth, prediction):
    assert score(truth, truth) == 1
    assert 0 <= score(truth, prediction) <= 1
    assert score(truth, prediction) == score(prediction, truth)
    assert (np.diff(count_matches(truth, prediction).true_positives) <= 0).all()


@given(LABEL_MAPS, LABEL_MAPS, st.permutations(range(1, 6)))
def test_ids_do_not_matter(truth, prediction, order):
    renamed = np.array([0, *order])[truth] * 40_000_000  # also far beyond any look-up
    assert score(renamed, prediction) == score(truth, prediction)
    assert score(prediction, renamed) == score(prediction, truth)


def test_areas_and_shared_pixels():
    overlap = tabulate_overlap(np.array([[4, 4, 0, 9]]), np.array([[0, 7, 7, 7]]))
    assert overlap.truth_areas.tolist() == [2, 1]
    assert overlap.prediction_areas.tolist() == [3]
    assert overlap.shared.tolist() == [[1], [1]]


def test_pooled_equals_stardist():
    rng = np.random.default_rng(5)
    pairs = [draw_pair(rng, 12) for _ in range(6)]
    expected = [
        matching_dataset(*zip(*pairs, strict=True), thresh=strictly(t), show_progress=False) for t in THRESHOLDS
    ]
    pooled = pooled_average_precision([count_matches(*pair) for pair in pairs])
    np.testing.assert_allclose(pooled, [e.accuracy for e in expected])
    assert pooled_average_precision([]).tolist() == [1.0] * 10


def test_sizes_that_differ_are_refused():
    with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 2\)"):
        score(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_negative_ids_are_refused():
    with pytest.raises(InputError, match="-1"):
        score(np.full((2, 3), -1), np.zeros((2, 3), int))
