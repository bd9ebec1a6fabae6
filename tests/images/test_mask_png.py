"""The used rows of a mask file are those that the general decoder finds, whatever filters wrote them."""

import io
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images.archive import index_archive, open_archive, read_entry
from pipeline.images.mask_png import decode_used_rows
from pipeline.images.raw import decode_image

MOST = 10**6


def draw_mask(seed, shape=(60, 70)):
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    center, axes = tuple(map(int, rng.integers(0, 60, 2))), tuple(map(int, rng.integers(1, 20, 2)))
    return cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)


def encode(mask, *options):
    return cv2.imencode(".png", mask, list(options))[1].tobytes()


def whole(used):
    """Return the image that used rows are of."""
    image = np.zeros(used.shape, np.uint8)
    image[used.top : used.top + len(used.rows)] = used.rows
    return image


@pytest.mark.parametrize("filters", [8, 16, 32, 64, 128, 248])  # none, sub, up, average, Paeth, all
@pytest.mark.parametrize("seed", range(5))
def test_every_filter(seed, filters):
    mask = draw_mask(seed)
    data = encode(mask, cv2.IMWRITE_PNG_FILTER, filters)
    np.testing.assert_array_equal(whole(decode_used_rows(data, MOST)), mask)


def test_only_used_rows_are_decoded():
    mask = np.zeros((50, 20), np.uint8)
    mask[30:33, 4:9] = 255
    used = decode_used_rows(encode(mask, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE), MOST)
    assert (used.top, len(used.rows), used.shape) == (30, 3, (50, 20))


def test_an_empty_mask_has_no_rows():
    used = decode_used_rows(encode(np.zeros((5, 7), np.uint8), cv2.IMWRITE_PNG_FILTER, 8), MOST)
    assert (used.rows.shape, used.shape) == ((0, 7), (5, 7))


def other_kinds():
    """Yield PNGs that are no plain greyscale ones."""
    mask = draw_mask(3)
    yield "16 bits", encode(mask.astype(np.uint16) * 257)
    yield "colour", encode(np.repeat(mask[..., None], 3, 2))
    for mode in ("1", "P", "LA"):
        file = io.BytesIO()
        Image.fromarray(mask).convert(mode).save(file, "PNG")
        yield mode, file.getvalue()
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", transparency=0)
    yield "tRNS", file.getvalue()
    yield "not a PNG", b"mask"
    yield "nothing", b""


@pytest.mark.parametrize(("kind", "data"), list(other_kinds()))
def test_other_kinds_are_left_to_the_general_decoder(kind, data):
    assert decode_used_rows(data, MOST) is None


def test_a_large_header_is_not_believed():
    assert decode_used_rows(encode(draw_mask(0)), 60 * 70 - 1) is None


def test_a_stream_of_another_length_is_refused():
    data = encode(draw_mask(0))
    start = data.index(b"IDAT")
    for count in (60 * 71 - 1, 60 * 71 + 1, 10**7):
        packed = zlib.compress(bytes(count))
        chunk = b"IDAT" + packed
        forged = b"".join(
            [data[: start - 4], len(packed).to_bytes(4, "big"), chunk, zlib.crc32(chunk).to_bytes(4, "big"), data[-12:]]
        )
        assert decode_used_rows(forged, MOST) is None


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_never_gives_another_mask(place, change):
    mask = draw_mask(1)
    data = bytearray(encode(mask))
    data[place % len(data)] ^= change
    used = decode_used_rows(bytes(data), MOST)
    assert used is None or (whole(used) == mask).all()


def test_masks_of_the_sample(sample):
    with open_archive(sample / "stage1_train.zip") as archive:
        entries = index_archive(archive, labelled=True, allow_unlabelled=False)
        names = [name for entry in entries[::7] for name in entry.mask_entries]
        for name in names:
            data = read_entry(archive, name, MOST)
            np.testing.assert_array_equal(whole(decode_used_rows(data, MOST * 10)), decode_image(data, name, MOST * 10))
