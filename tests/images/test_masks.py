"""Masks become one label map, with every fault found and named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from pipeline.errors import InputError
from pipeline.images.masks import Mask, Problem, crop_mask, merge_masks

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def place(pixels, name="m"):
    """Return a mask from rows of text, `#` for the nucleus."""
    return crop_mask(np.array([[255 * (c == "#") for c in row] for row in pixels], np.uint8), name)


def merge(*drawings, min_fragment_px=1):
    masks = [place(drawing, f"m{i}") for i, drawing in enumerate(drawings)]
    return merge_masks(masks, (len(drawings[0]), len(drawings[0][0])), min_fragment_px)


class TestMasks:
    def test_a_mask_is_cut_to_its_box(self):
        mask = place(["......", "...#..", "..##.."])
        assert (mask.top, mask.left) == (1, 2)
        assert mask.pixels.tolist() == [[False, True], [True, True]]

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_any_value_above_zero_is_nucleus_and_alpha_is_not(self, dtype, channels):
        array = np.zeros((4, 5, channels), dtype)
        array[1, 2, 0] = 256 if dtype == np.uint16 else 1
        if channels == 4:
            array[..., 3] = np.iinfo(dtype).max
        mask = crop_mask(array[..., 0] if channels == 1 else array, "m")
        assert (mask.top, mask.left, mask.pixels.shape) == (1, 2, (1, 1))

    def test_ids_follow_the_order_of_the_masks(self):
        label_map, problems = merge(["...#", "...."], ["##..", "##.."])
        assert label_map.tolist() == [[2, 2, 0, 1], [2, 2, 0, 0]]
        assert label_map.dtype == np.uint16
        assert problems == []

    @pytest.mark.parametrize("small_first", [True, False])
    def test_an_overlap_goes_to_the_smaller_whatever_the_order(self, small_first):
        small, large = ["..##"], ["###."]
        label_map, problems = merge(small, large) if small_first else merge(large, small)
        ids = (1, 2) if small_first else (2, 1)
        assert label_map.tolist() == [[ids[1], ids[1], ids[0], ids[0]]]
        assert problems == [Problem(f"m{ids[0] - 1}", "overlap", 1, "given to this mask, the smaller one")]

    def test_a_hole_is_filled_and_counted(self):
        label_map, problems = merge(["#####", "#...#", "#####"])
        assert (label_map == 1).all()
        assert problems == [Problem("m0", "hole", 3, "filled")]

    def test_a_background_that_touches_the_outside_by_a_corner_is_a_hole(self):
        label_map, problems = merge([".##", "#.#", "###"])
        assert label_map.tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1]]
        assert [p.problem for p in problems] == ["hole"]

    def test_specks_are_dropped_and_fragments_kept(self):
        label_map, problems = merge(["####.#.###"], min_fragment_px=2)
        assert label_map.tolist() == [[1, 1, 1, 1, 0, 0, 0, 1, 1, 1]]
        assert problems == [Problem("m0", "speck", 1, "dropped"), Problem("m0", "fragment", 3, "kept in the nucleus")]

    def test_a_nucleus_of_specks_alone_is_dropped_and_each_counted_once(self):
        label_map, problems = merge(["##.###...."], ["........##"], min_fragment_px=4)
        assert not label_map.any()
        assert [(p.mask_id, p.problem, p.value) for p in problems] == [
            ("m0", "speck", 2),
            ("m0", "speck", 3),
            ("m1", "speck", 2),
        ]

    def test_a_corner_joins_fragments(self):
        assert merge(["#.", ".#"], min_fragment_px=2)[1] == []

    def test_an_empty_mask_gets_no_id(self):
        label_map, problems = merge(["...."], ["..#."])
        assert label_map.tolist() == [[0, 0, 1, 0]]
        assert problems == [Problem("m0", "empty", 0, "dropped")]

    def test_a_mask_that_others_cover_gets_no_id(self):
        label_map, problems = merge(["####"], ["##.."], ["..##"])
        assert label_map.tolist() == [[1, 1, 2, 2]]
        assert problems[-1] == Problem("m0", "covered", 4, "dropped")
        assert sum(p.value for p in problems if p.problem == "overlap") == 4

    def test_of_two_equal_masks_one_is_left(self):
        label_map, problems = merge(["##.."], ["##.."])
        assert label_map.tolist() == [[1, 1, 0, 0]]
        assert [(p.mask_id, p.problem) for p in problems] == [("m1", "overlap"), ("m0", "covered")]

    def test_ids_above_255_are_whole(self):
        masks = [Mask(str(i), i // 30 * 2, i % 30 * 2, np.ones((1, 1), bool)) for i in range(600)]
        label_map, problems = merge_masks(masks, (40, 60), 1)
        assert label_map.max() == 600
        assert np.array_equal(label_map[::2, ::2].ravel(), np.arange(1, 601))
        assert problems == []

    def test_more_nuclei_than_ids_are_refused_by_name(self):
        masks = [Mask("first", 0, 0, np.ones((1, 1), bool))] * 65536
        with pytest.raises(InputError, match=r"65536 nuclei in the image of mask first"):
            merge_masks(masks, (1, 1), 1)

    def test_no_masks(self):
        label_map, problems = merge_masks([], (2, 3), 1)
        assert label_map.tolist() == [[0] * 3] * 2
        assert problems == []


def merge_slowly(arrays, min_fragment_px):
    """Merge whole-image masks pixel by pixel, with scipy's components and holes."""
    cleaned = []
    for array in arrays:
        parts, count = ndimage.label(array, EIGHT_NEIGHBOURS)
        kept = [i for i in range(1, count + 1) if (parts == i).sum() >= min_fragment_px]
        cleaned.append(ndimage.binary_fill_holes(np.isin(parts, kept)))
    areas = [int(mask.sum()) for mask in cleaned]
    owners = np.zeros(arrays[0].shape, int)
    for row, col in np.ndindex(*owners.shape):
        claims = [i for i, mask in enumerate(cleaned) if mask[row, col]]
        if claims:
            owners[row, col] = 1 + min(claims, key=lambda i: (areas[i], -i))
    ids = [i for i in np.unique(owners) if i]
    return sum((np.where(owners == i, n, 0) for n, i in enumerate(ids, 1)), np.zeros_like(owners))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), min_fragment_px=st.integers(0, 4), count=st.integers(1, 6))
def test_merging_equals_the_slow_reference(data, min_fragment_px, count):
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    arrays = [data.draw(hnp.arrays(bool, shape)) for _ in range(count)]
    masks = [crop_mask(array.astype(np.uint8) * 255, str(i)) for i, array in enumerate(arrays)]
    label_map, problems = merge_masks(masks, shape, min_fragment_px)
    assert np.array_equal(label_map, merge_slowly(arrays, min_fragment_px))
    assert set(np.unique(label_map)) - {0} == set(range(1, label_map.max() + 1))
    assert sum(p.problem == "empty" for p in problems) == sum(not array.any() for array in arrays)


@settings(max_examples=50, deadline=None)
@given(arrays=st.lists(hnp.arrays(bool, (7, 8)), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_the_order_of_masks_of_different_areas_decides_nothing_but_the_ids(arrays, seed):
    arrays = [array for i, array in enumerate(arrays) if array.sum() not in {a.sum() for a in arrays[:i]}]
    # Without holes or specks, so that the areas stay different.
    arrays = [a for a in arrays if np.array_equal(ndimage.binary_fill_holes(a), a)]
    masks = [crop_mask(array.astype(np.uint8), str(i)) for i, array in enumerate(arrays)]
    shuffled = [masks[i] for i in np.random.default_rng(seed).permutation(len(masks))]
    first, second = (merge_masks(order, (7, 8), 0)[0] for order in (masks, shuffled))
    pairs = set(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
