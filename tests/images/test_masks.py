"""Masks become one label map, with every fault found and named."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from pipeline.errors import InputError
from pipeline.images.mask_png import UsedRows
from pipeline.images.masks import Mask, Problem, crop_mask, merge_masks, split_mask_file

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


SHAPE = (96, 128)


def ellipse(row, column, height, width, shape=SHAPE):
    """Return an ellipse of these half axes, (H, W) bool."""
    return cv2.ellipse(np.zeros(shape, np.uint8), (column, row), (width, height), 0, 0, 360, 1, -1) > 0


def draw_labels(ids, dtype=np.uint8):
    """Return a label image (H, W) of round nuclei, of which the first two touch."""
    labels = np.zeros(SHAPE, dtype)
    for place, label in enumerate(ids):
        labels[ellipse(12 + 24 * (place // 5), 14 + (24 * (place % 5) if place else 7), 9, 9)] = label
    return labels


LABELS = draw_labels(range(1, 9))
WHITE = np.where(ellipse(50, 60, 20, 30), 255, 0).astype(np.uint8)


def jpeg(array, quality):
    return cv2.imdecode(cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_UNCHANGED)


def split(array, top=0, shape=None):
    """Return the nuclei of a mask file by their names, (H, W) bool."""
    shape = shape or array.shape[:2]
    found = {}
    for mask in split_mask_file(UsedRows(array, top, shape), "m", "t.zip: a/masks/m.png", 4):
        found[mask.mask_id] = np.zeros(shape, bool)
        height, width = mask.pixels.shape
        found[mask.mask_id][mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
    return found


def assert_split(array, truths):
    found = split(array)
    assert list(found) == list(truths)
    for name, truth in truths.items():
        assert np.array_equal(found[name], truth), name


def by_id(labels):
    return {f"m.{value}": labels == value for value in np.unique(labels) if value}


class TestMaskFiles:
    @pytest.mark.parametrize("value", [1, 2, 255, 256, 65535])
    def test_one_value_beside_black_is_a_mask(self, value):
        dtype = np.uint8 if value < 256 else np.uint16
        assert_split((WHITE > 0) * dtype(value), {"m": WHITE > 0})

    @pytest.mark.parametrize("value", [0, 1, 255])
    def test_one_value_alone_is_a_mask(self, value):
        assert_split(np.full(SHAPE, value, np.uint8), {"m": np.full(SHAPE, value > 0)})

    @pytest.mark.parametrize(
        "ids",
        [
            range(1, 9),
            [1, 2],
            [2, 1],  # in any order
            [3, 7, 20, 250],  # with gaps
            [1, 255],
            [85, 170, 255],  # spread over the greys
            [127, 255],
            [254, 9, 255],
        ],
    )
    def test_a_label_image_is_a_nucleus_for_each_id(self, ids):
        labels = draw_labels(ids)
        assert_split(labels, by_id(labels))

    def test_ids_of_16_bits(self):
        labels = draw_labels([1, 300, 255, 65535, 256, 4097], np.uint16)
        assert_split(labels, by_id(labels))

    def test_ids_in_colours(self):
        colours = np.zeros((*SHAPE, 3), np.uint8)
        colours[LABELS == 1], colours[LABELS == 2], colours[LABELS == 3] = (255, 0, 0), (0, 128, 255), (128, 128, 128)
        truths = {"m.0080ff": LABELS == 2, "m.808080": LABELS == 3, "m.ff0000": LABELS == 1}
        assert_split(colours, truths)
        assert_split(np.dstack([colours, np.full(SHAPE, 255, np.uint8)]), truths)

    def test_one_id_of_ten_may_be_in_pieces(self):
        labels = draw_labels(range(1, 11))
        labels[80:84, 60:70] = 10
        assert_split(labels, by_id(labels))

    def test_specks_of_a_label_image_are_dropped_and_holes_filled_as_in_masks(self):
        labels = draw_labels([1, 5, 2])
        labels[90, 100] = 5
        labels[12, 14] = 0
        masks = split_mask_file(UsedRows(labels, 0, SHAPE), "m", "t.zip", 4)
        label_map, problems = merge_masks(masks, SHAPE, 4)
        assert problems == [Problem("m.1", "hole", 1, "filled"), Problem("m.5", "speck", 1, "dropped")]
        assert label_map.max() == 3
        assert label_map[12, 14] == 1

    def test_cells_that_fill_the_image_but_for_lines(self):
        rows, columns = np.indices(SHAPE)
        labels = (1 + rows // 12 * 8 + columns // 16).astype(np.uint8)
        labels[:, ::16] = 0
        assert_split(labels, by_id(labels))
        labels[:12, 8] = 65  # hemmed in, between two halves of another
        assert_split(labels, by_id(labels))

    def test_colours_of_one_nucleus(self):
        red = np.zeros((*SHAPE, 3), np.uint8)
        red[WHITE > 0] = (200, 10, 0)
        assert_split(red, {"m": WHITE > 0})

    def test_an_alpha_channel_of_one_value_says_nothing(self):
        for opacity in (0, 255):
            alpha = np.full(SHAPE, opacity, np.uint8)
            assert_split(np.dstack([WHITE, WHITE, WHITE, alpha]), {"m": WHITE > 0})
            assert_split(np.dstack([WHITE, alpha]), {"m": WHITE > 0})

    @pytest.mark.parametrize("ink", [0, 255])
    @pytest.mark.parametrize("paper", [0, 255])
    def test_what_is_transparent_is_background(self, ink, paper):
        grey = np.where(WHITE > 0, ink, paper).astype(np.uint8)
        assert_split(np.dstack([grey, grey, grey, WHITE]), {"m": WHITE > 0})

    def test_ids_on_a_transparent_background(self):
        grey = np.where(LABELS > 0, LABELS, 77)
        alpha = (LABELS > 0).astype(np.uint8) * 255
        assert_split(np.dstack([grey, grey, grey, alpha]), by_id(LABELS))

    def test_rows_that_are_left_out_are_background(self):
        labels = np.where(LABELS == 8, 0, LABELS)
        top, end = np.flatnonzero(labels.any(axis=1))[[0, -1]]
        found, truths = split(labels[top : end + 1], top, SHAPE), by_id(labels)
        assert list(found) == list(truths)
        assert all(np.array_equal(found[name], truths[name]) for name in truths)


def soften(mask, kind):
    if kind == "antialiased":
        return cv2.resize(cv2.resize(mask, None, fx=4, fy=4), (128, 96), interpolation=cv2.INTER_AREA)
    if kind == "resized":
        return cv2.resize(cv2.resize(mask, (50, 40), interpolation=cv2.INTER_NEAREST), (128, 96))
    if kind == "rim":
        return np.where(cv2.erode(mask, np.ones((3, 3))) > 0, 255, mask // 2).astype(np.uint8)
    if kind == "254":
        return mask - ((mask > 0) & (np.indices(mask.shape)[1] % 5 == 0)).astype(np.uint8)
    if kind == "half of 254":
        return mask - ((mask > 0) & (np.indices(mask.shape)[1] < 60)).astype(np.uint8)
    name, strength = kind.split()
    return jpeg(mask, int(strength)) if name == "jpeg" else cv2.GaussianBlur(mask, (0, 0), float(strength))


class TestSoftMasks:
    @pytest.mark.parametrize("place", [(50, 60, 20, 30), (5, 120, 9, 14), (95, 60, 30, 20), (30, 30, 4, 6)])
    @pytest.mark.parametrize(
        "kind",
        ["antialiased", "resized", "rim", "254", "half of 254", "blur 1", "jpeg 95", "jpeg 90", "jpeg 75"],
    )
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_what_has_half_of_the_full_scale_is_the_nucleus(self, place, kind, dtype):
        soft = soften(np.where(ellipse(*place), 255, 0).astype(np.uint8), kind)
        soft = soft if dtype == np.uint8 else soft.astype(np.uint16) * 257
        assert_split(soft, {"m": soft > np.iinfo(dtype).max // 2})

    def test_soft_edges_in_the_alpha_channel(self):
        alpha = soften(WHITE, "antialiased")
        ink = np.zeros(SHAPE, np.uint8)
        assert_split(np.dstack([ink, ink, ink, alpha]), {"m": alpha > 127})


CELL = ellipse(50, 60, 20, 30)
INNER = ellipse(50, 60, 10, 15)
NOISE = np.random.default_rng(0)
REFUSED = {
    "no background": (np.where(CELL, 2, 1).astype(np.uint8), r"2 values \(1, 2\).*none is 0"),
    "white around colours": (
        np.where(CELL[..., None], np.array([255, 0, 0]), 255).astype(np.uint8),
        r"2 values \(ff0000, ffffff\).*none is 0",
    ),
    "a nucleus and its border": (CELL.astype(np.uint8) + INNER, "1 encloses another"),
    "background 1, lines 0": (
        np.where(CELL, np.where(INNER, 2, 0), 1).astype(np.uint8),
        "1 encloses another",
    ),
    "classes": (np.where(LABELS % 2, 1, 2).astype(np.uint8) * (LABELS > 0), "3 values .*they lie in 8 pieces"),
    "ids that wrapped at 255": (np.where(LABELS > 4, LABELS - 4, LABELS), "they lie in 8 pieces"),
    "a picture": (NOISE.integers(0, 256, SHAPE).astype(np.uint8), "256 values .*they"),
    "a picture in colours": (NOISE.integers(0, 256, (*SHAPE, 3)).astype(np.uint8), "values .*none is 0|they run"),
    "a distance map": (cv2.distanceTransform(WHITE, cv2.DIST_L2, 5).astype(np.uint8), "they|encloses"),
    "a heat map": (cv2.GaussianBlur(WHITE, (0, 0), 8), "they|encloses"),
    "a label image as JPEG": (jpeg(LABELS, 95), "they|encloses"),
    "a bright label image as JPEG": (jpeg(LABELS * 31, 95), "they|encloses"),
    "a label image that was resized": (cv2.resize(LABELS, (100, 80)), "they"),
    "a label image that was blurred": (cv2.GaussianBlur(LABELS, (0, 0), 1), "they|encloses"),
    "soft colours": (np.dstack([soften(WHITE, "blur 1"), WHITE // 2, WHITE // 2]), "they|encloses"),
    "inverted": (255 - WHITE, r"nucleus along the frame, around 1\d{3} px of background"),
    "inverted and soft": (255 - soften(WHITE, "jpeg 90"), "nucleus along the frame"),
    "inverted ids": (np.where(LABELS > 0, 0, 9).astype(np.uint8) + (LABELS == 8), "encloses|along the frame"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_neither_a_mask_nor_a_label_image_is_refused(kind):
    array, message = REFUSED[kind]
    with pytest.raises(InputError, match=message) as error:
        split(array)
    assert str(error.value).startswith("t.zip: a/masks/m.png: ")
    assert "save a nucleus as 255 and all else as 0" in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=200, deadline=None)
@given(
    labels=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from([0, 1, 2, 3, 128, 254, 255]),
    )
)
def test_any_file_is_one_mask_or_ids_or_refused(labels):
    try:
        found = split(labels)
    except InputError:
        return
    if list(found) == ["m"]:
        assert not found["m"][labels == 0].any()
    else:
        assert {name: mask.tolist() for name, mask in found.items()} == {
            name: mask.tolist() for name, mask in by_id(labels).items()
        }


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
