"""The challenge's scores: small cases by hand, what must not change them, and scikit-image's where they coincide."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import adapted_rand_error, variation_of_information

from pipeline.errors import InputError
from pipeline.nuclei.decoding import label_components
from pipeline.nuclei.membrane_metric import (
    THRESHOLDS,
    count_pixels,
    count_regions,
    count_slice,
    pixel_error,
    rand_error,
    score_stack,
    thin_membranes,
    v_info,
    v_rand,
)

LABELS = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9), elements=st.integers(0, 4)
)


def row(*values: int) -> np.ndarray:
    return np.array([values], np.int32)


def test_a_perfect_proposal_has_the_best_scores() -> None:
    truth = row(1, 1, 0, 2, 2, 2)
    counts = count_regions(truth, row(5, 5, 0, 3, 3, 3))
    assert (v_rand(counts), v_info(counts), rand_error(counts)) == pytest.approx((1, 1, 0))


def test_a_merge_by_hand() -> None:
    # Cells of 2 and 4 pixels, one region of 6: squares 4 + 16, 36, and 4 + 16 of pairs.
    counts = count_regions(row(1, 1, 0, 2, 2, 2, 2), row(1, 1, 1, 1, 1, 1, 1))
    assert v_rand(counts) == pytest.approx(2 * 20 / (20 + 36))
    assert v_info(counts) == pytest.approx(0)  # a single region says nothing
    # Without pairs of a pixel with itself: 2 + 12 of 30.
    assert rand_error(counts) == pytest.approx(1 - 2 * 14 / (14 + 30))


def test_a_split_by_hand() -> None:
    # One cell of 4 pixels in regions of 1 and 2, and one pixel that is called membrane: a region of its own.
    counts = count_regions(row(1, 1, 1, 1), row(1, 0, 2, 2))
    assert counts.squares.tolist() == [16, 1 + 4 + 1, 1 + 4 + 1]
    assert v_rand(counts) == pytest.approx(2 * 6 / (16 + 6))
    assert rand_error(counts) == pytest.approx(1 - 2 * 2 / (12 + 2))


def test_what_the_truth_calls_membrane_does_not_count() -> None:
    truth = row(1, 1, 0, 0, 2, 2)
    assert v_rand(count_regions(truth, row(1, 1, 1, 0, 2, 2))) == v_rand(count_regions(truth, row(1, 1, 0, 2, 2, 2)))


@given(LABELS, st.randoms())
@settings(max_examples=200, deadline=None)
def test_scores_do_not_depend_on_the_names_of_regions_and_lie_in_bounds(truth: np.ndarray, random) -> None:
    names = list(range(1, 20))
    random.shuffle(names)
    regions = np.roll(truth, 1, axis=0)
    renamed = np.concatenate([[0], names])[regions]
    one, other = count_regions(truth, regions), count_regions(truth, renamed)
    for formula in (v_rand, v_info, rand_error):
        assert formula(one) == pytest.approx(formula(other))
        assert -1e-9 <= formula(one) <= 1 + 1e-9


@given(LABELS, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_scikit_image_agrees_where_a_proposal_has_no_membrane(truth: np.ndarray, seed: int) -> None:
    if (truth > 0).sum() < 2:
        return
    regions = np.random.default_rng(seed).integers(1, 4, truth.shape)
    counts = count_regions(truth, regions)
    pairs = counts.squares - counts.pixels
    if pairs[0] > 0 and pairs[1] > 0:
        assert rand_error(counts) == pytest.approx(adapted_rand_error(truth, regions, ignore_labels=(0,))[0])
    cells, by_region, both = counts.entropies / counts.pixels / np.log(2)
    # H(region | cell) and H(cell | region), which scikit-image gives in bits. It normalises by all pixels.
    inside = truth > 0
    missing = variation_of_information(truth[inside], regions[inside])
    assert missing == pytest.approx([both - cells, both - by_region], abs=1e-9)


def test_a_stack_pools_pairs_of_pixels_and_averages_information() -> None:
    # Fifty rows: with cells of a few pixels, calling all of them membrane would tell the most.
    truth = np.repeat([[1, 1, 0, 2, 2, 0, 3, 3, 3]], 50, axis=0)
    right, merged = count_slice(truth, (truth > 0).astype(np.float32)), count_slice(truth, np.ones(truth.shape))
    scores = score_stack([right, merged])
    # Squares of the truth are 2500 times 4 + 4 + 9, of the one region 49; a single region tells nothing.
    assert scores["v_rand"] == pytest.approx(2 * (17 + 17) / (17 + 17 + 17 + 49))
    assert scores["v_info"] == pytest.approx((1 + 0) / 2)
    alone = score_stack([right])
    assert alone["v_rand"] == alone["v_info"] == pytest.approx(1)
    assert alone["rand_error"] == alone["pixel_error"] == pytest.approx(0)


def test_empty_slices() -> None:
    nothing = count_regions(np.zeros((3, 3), int), np.ones((3, 3), int))
    assert (v_rand(nothing), v_info(nothing), rand_error(nothing)) == (1, 1, 0)
    assert pixel_error(count_pixels(np.zeros((2, 2), int), np.zeros((2, 2), bool))) == 0
    with pytest.raises(InputError):
        count_regions(np.zeros((3, 3), int), np.ones((2, 3), int))


def test_pixel_error_by_hand() -> None:
    counts = count_pixels(row(1, 1, 0, 2), np.array([[True, False, True, True]]))
    assert pixel_error(counts) == pytest.approx(1 - 2 * 2 / (3 + 3))


def test_thinning_leaves_lines_of_one_pixel_up_to_the_edge() -> None:
    inside = np.ones((20, 31), bool)
    inside[:, 12:19] = False
    thin = thin_membranes(label_components(inside))
    assert (thin == 0).sum(axis=1).tolist() == [1] * 20
    assert set(np.unique(thin)) == {0, 1, 2}
    assert (thin[inside] == label_components(inside)[inside]).all()


@given(st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_thinning_loses_and_merges_no_region(seed: int) -> None:
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).random((48, 48)), (0, 0), 2)
    regions = label_components(smooth > np.median(smooth))
    thin = thin_membranes(regions)
    assert (thin[regions > 0] == regions[regions > 0]).all()
    for one, other in ((thin[1:], thin[:-1]), (thin[:, 1:], thin[:, :-1])):
        assert ((one == other) | (one == 0) | (other == 0)).all()
    # What is left are lines: every pixel of them has a region at its side.
    near = cv2.dilate((thin > 0).astype(np.uint8), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8))
    assert near.all()


def test_thick_membranes_cost_the_old_scores_alone() -> None:
    truth = np.zeros((40, 41), int)
    truth[:, :20], truth[:, 21:] = 1, 2
    inside = np.ones((40, 41), np.float32)
    inside[:, 15:26] = 0
    scores = score_stack([count_slice(truth, inside)])
    assert scores["v_rand"] == pytest.approx(1)
    assert scores["rand_error"] > 0.1


def test_one_threshold_serves_the_whole_stack() -> None:
    truth = np.zeros((8, 9), int)
    truth[:, :4], truth[:, 5:] = 1, 2
    low, high = np.ones((2, 8, 9), np.float32)
    low[:, 4], high[:, 4] = 0.35, 0.85  # the membrane is seen at thresholds from 0.4 and from 0.9 on
    low[:, 5:] = 0.65  # and half of this slice is lost from 0.7 on
    scores = score_stack([count_slice(truth, low), count_slice(truth, high)])
    assert scores["v_rand"] < 1
    assert score_stack([count_slice(truth, low)])["v_rand"] == pytest.approx(1)
    assert score_stack([count_slice(truth, high)])["v_rand_threshold"] == 0.9
    assert scores["v_rand_threshold"] in THRESHOLDS
