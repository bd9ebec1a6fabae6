"""Image files become uint8 RGB by the stated rules."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline.errors import InputError
from pipeline.images.raw import decode_image, to_rgb

LIMIT = 10_000
GREY = np.array([[0, 7, 255], [128, 3, 90]], np.uint8)
RGB = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14


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


def forbid_decoding(monkeypatch):
    for module, name in ((cv2, "imdecode"), (simplejpeg, "decode_jpeg")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("decoded"))


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

    def test_sixteen_bits_are_stretched(self, png):
        """(3000 - 1000) * 255 / 4000 = 127.5, and halves go up; how, `test_contrast.py` has by hand."""
        values = np.repeat(np.arange(1000, 5001, 500, dtype=np.uint16), 5)[None].repeat(9, axis=0)
        image = read(png(values))
        assert image[4, ::20, 0].tolist() == [0, 128, 255]
        assert (image == image[..., :1]).all()

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
        forbid_decoding(monkeypatch)
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
            assert tracemalloc.get_traced_memory()[1] < 3 * array.nbytes
        finally:
            tracemalloc.stop()
        opacity = array[..., 3:] / 65535
        assert np.array_equal(image, to_rgb((array[..., :3] * opacity).round().astype(np.uint16)))

    @pytest.mark.parametrize("suffix", [".tiff", ".bmp", ".webp", ".ppm", ".gif"])
    def test_other_formats_are_refused_before_they_are_decoded(self, png, suffix, monkeypatch):
        data = png(np.zeros((5, 7, 3), np.uint8), suffix)
        forbid_decoding(monkeypatch)
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
        forbid_decoding(monkeypatch)
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
        forbid_decoding(monkeypatch)
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
