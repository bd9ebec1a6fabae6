"""Image files become uint8 RGB by the stated rules, and masks one label map, with every fault found and named."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from pipeline.errors import InputError
from pipeline.images.raw import Mask, Problem, crop_mask, decode_image, merge_masks, to_rgb

LIMIT = 10_000
GREY = np.array([[0, 7, 255], [128, 3, 90]], np.uint8)
RGB = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@pytest.fixture
def png():
    """Return a function that encodes an array by OpenCV, channels in the order R, G, B, alpha."""

    def encode(array, suffix=".png"):
        order = [2, 1, 0, 3][: array.shape[2]] if array.ndim == 3 else slice(None)
        return cv2.imencode(suffix, array[..., order] if array.ndim == 3 else array)[1].tobytes()

    return encode


def read(data):
    image = to_rgb(decode_image(data, "x.png", LIMIT))
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    return image


def save(image, **options):
    """Encode a Pillow image as a PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def with_alpha(array, alpha):
    return np.dstack([array, np.broadcast_to(np.asarray(alpha, array.dtype), array.shape[:2])])


class TestColours:
    def test_three_channels_are_kept(self, png):
        assert np.array_equal(read(png(RGB)), RGB)

    def test_one_channel_is_repeated(self, png):
        assert np.array_equal(read(png(GREY)), np.dstack([GREY] * 3))

    def test_one_bit_is_black_and_white(self):
        assert np.array_equal(read(save(Image.fromarray(GREY > 100)))[..., 0], [[0, 0, 255], [255, 0, 0]])

    def test_a_palette_is_looked_up(self):
        image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
        image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
        assert read(save(image)).tolist() == [[[10, 20, 30], [200, 100, 0]], [[1, 2, 3], [200, 100, 0]]]

    @pytest.mark.parametrize("alpha", [0, 77, 255])
    def test_a_constant_alpha_is_dropped(self, png, alpha):
        assert np.array_equal(read(png(with_alpha(RGB, alpha))), RGB)

    def test_a_real_alpha_is_composited_over_black(self, png):
        """200 * 128 / 255 = 100.4, 100 * 128 / 255 = 50.2, 50 * 128 / 255 = 25.1."""
        colour = np.full((1, 3, 3), (200, 100, 50), np.uint8)
        expected = [[[200, 100, 50], [100, 50, 25], [0, 0, 0]]]
        assert read(png(with_alpha(colour, [[255, 128, 0]]))).tolist() == expected

    def test_grey_with_alpha(self):
        image = Image.merge("LA", [Image.fromarray(np.array(band, np.uint8)) for band in ([[200, 200]], [[255, 128]])])
        assert read(save(image)).tolist() == [[[200] * 3, [100] * 3]]

    def test_sixteen_bits_are_stretched_between_percentiles(self, png):
        """Of 1,001 values 0, 10 .. 10000, the 0.1th percentile is 10 and the 99.9th 9990."""
        values = (np.arange(1001, dtype=np.uint16) * 10).reshape(7, 143)
        image = read(png(values)).reshape(-1, 3)
        assert image[[0, 1, 251, 999, 1000], 0].tolist() == [0, 0, 64, 255, 255]  # 250 * 255 / 998 = 63.9
        assert (image == image[:, :1]).all()

    def test_sixteen_bits_are_stretched_alike_in_all_channels(self, png):
        values = np.zeros((40, 50, 3), np.uint16)
        values[..., 0], values[:20, :, 1] = 60000, 30000
        image = read(png(values))
        assert image[0, 0].tolist() == [255, 128, 0]
        assert image[39, 0].tolist() == [255, 0, 0]

    def test_a_dim_sixteen_bit_image_does_not_turn_black(self, png):
        values = np.tile(np.arange(200, dtype=np.uint16), (40, 1))  # all below 256: `>> 8` would give 0
        assert np.ptp(read(png(values))) == 255

    def test_sixteen_bits_of_one_value_are_black(self, png):
        assert not read(png(np.full((3, 4), 40000, np.uint16))).any()

    def test_sixteen_bits_with_alpha(self, png):
        values = np.zeros((30, 40, 3), np.uint16)
        values[:, 20:] = 50000
        alpha = np.full((30, 40), 65535)
        alpha[:15] = 0
        image = read(png(with_alpha(values, alpha)))
        assert (image[15:, 20:] == 255).all()
        assert not image[:15].any()
        assert not image[:, :20].any()

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_channels_are_swapped_in_place_whatever_the_size(self, png, dtype, channels):
        rng = np.random.default_rng(0)
        for height, width in ((1, 1), (3, 17), (64, 65), (1100, 1000)):
            array = rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)
            assert np.array_equal(decode_image(png(array), "x", 10**7), array)

    @settings(max_examples=40, deadline=None)
    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
    def test_eight_bits_survive_as_pillow_reads_them(self, array):
        array = array[..., 0] if array.shape[2] == 1 else array
        data = save(Image.fromarray(array))
        assert np.array_equal(read(data), np.asarray(Image.fromarray(array).convert("RGB")))


class TestDamage:
    def refusal(self, data):
        with pytest.raises(InputError, match=r"^x\.png: ") as caught:
            decode_image(data, "x.png", LIMIT)
        return str(caught.value)

    def patch_size(self, data, width, height):
        header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]

    def test_a_png_cut_anywhere(self, png):
        data = png(RGB)
        for length in range(len(data)):
            self.refusal(data[:length])
        assert "cut short" in self.refusal(data[:-1])

    def test_a_png_with_a_piece_missing(self, png):
        data = png(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
        for end in range(40, len(data) - 12, 50):
            self.refusal(data[:end] + data[-12:])

    def test_zeros_after_the_end_do_no_harm(self, png):
        assert np.array_equal(read(png(RGB) + bytes(100)), RGB)

    @pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
    def test_zero_size(self, png, width, height):
        assert f"zero size ({height} x {width} px)" in self.refusal(self.patch_size(png(RGB), width, height))

    def test_a_huge_header_is_refused_before_anything_is_decoded(self, png, monkeypatch):
        monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        message = self.refusal(self.patch_size(png(RGB), 2**31 - 1, 2**31 - 1))
        assert "2147483647 x 2147483647 px" in message
        assert "housekeeping.max_pixels" in message

    @pytest.mark.parametrize("data", [b"", b"GIF89a", b"hello", bytes(1000), b"\x89PNG\r\n\x1a\n"])
    def test_what_is_no_image(self, data):
        self.refusal(data)

    def test_a_large_image_of_sixteen_bits_takes_little_beyond_itself(self):
        """As floats, it took ten times as much; the strips are those of a small image at once."""
        array = np.random.default_rng(0).integers(0, 2**16, (1100, 1300, 4), np.uint16)
        tracemalloc.start()
        try:
            image = to_rgb(array)
            assert tracemalloc.get_traced_memory()[1] < 2.5 * array.nbytes
        finally:
            tracemalloc.stop()
        low, high = np.percentile(array[..., :3], (0.1, 99.9))
        levels = np.clip((array[..., :3] - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
        opacity = array[..., 3:].astype(np.float32) / 65535
        assert np.array_equal(image, (levels * opacity).round().astype(np.uint8))

    @pytest.mark.parametrize("suffix", [".tiff", ".bmp", ".webp", ".ppm", ".gif"])
    def test_other_formats_are_refused_before_they_are_decoded(self, png, suffix, monkeypatch):
        data = png(np.zeros((5, 7, 3), np.uint8), suffix)
        monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        assert "neither PNG nor JPEG" in self.refusal(data)

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_max_pixels_is_the_largest_size_allowed(self, png, suffix):
        data = png(np.zeros((5, 7, 3), np.uint8), suffix)
        assert decode_image(data, "x", 35).shape == (5, 7, 3)
        with pytest.raises(InputError, match=r"5 x 7 px.* max_pixels = 34"):
            decode_image(data, "x", 34)

    @pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]])
    def test_a_jpeg_whose_header_is_huge_is_refused_before_it_is_decoded(self, options, monkeypatch):
        data = cv2.imencode(".jpg", np.zeros((40, 30, 3), np.uint8), options)[1].tobytes()
        assert read(data).shape == (40, 30, 3)
        place = data.index(struct.pack(">HH", 40, 30))
        monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        message = self.refusal(data[:place] + b"\xff" * 4 + data[place + 4 :])
        assert "65535 x 65535 px" in message
        # A thumbnail's header within a segment of its own is not the image's.
        thumbnail = b"\xff\xe1" + struct.pack(">H", 100) + data[2:100]
        assert "65535 x 65535 px" in self.refusal(
            data[:2] + thumbnail + data[2:place] + b"\xff" * 4 + data[place + 4 :]
        )

    def test_a_jpeg_of_thousands_of_scans_is_refused(self, monkeypatch):
        data = cv2.imencode(".jpg", np.zeros((40, 30), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
        scan = data[data.rindex(b"\xff\xda") : -2]
        monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        assert "more than 100 scans" in self.refusal(data[:-2] + scan * 5000 + data[-2:])

    def test_a_jpeg_cut_within_its_headers(self):
        data = cv2.imencode(".jpg", np.zeros((40, 30), np.uint8))[1].tobytes()
        for length in range(3, data.index(b"\xff\xc0") + 8):
            assert "a JPEG that is cut short" in self.refusal(data[:length])

    def test_a_second_header_does_not_enlarge_the_image(self, png):
        data = png(RGB)
        huge = self.patch_size(data, 5000, 5000)
        self.refusal(data[:33] + huge[8:33] + data[33:])

    @pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
    def test_a_bomb_in_an_ancillary_chunk_does_no_harm(self, png, kind):
        """50 MB of text or colour profile, in 50 kB."""
        content = b"k\0\0" + (b"\1\0\0" if kind == b"iTXt" else b"") + zlib.compress(bytes(50_000_000))
        chunk = kind + content
        whole = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = png(RGB)
        assert np.array_equal(read(data[:33] + whole + data[33:]), RGB)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_whatever_byte_is_damaged_the_size_is_within_bounds_and_no_other_error_comes(self, data):
        array = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        content = bytearray(cv2.imencode(data.draw(st.sampled_from([".png", ".jpg"])), array)[1].tobytes())
        for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)))):
            content[place] = value
        with contextlib.suppress(InputError):
            assert read(bytes(content)).size <= 3 * LIMIT


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
