"""Run-length encoding: hand-computed cases, round trips, a slow reference, and everything that is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.errors import InputError
from pipeline.nuclei.rle import decode_pixels, decode_rle, decode_rles, encode_label_map

LABEL_MAPS = npst.arrays(
    st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.integers(0, 5),
)


def encode_by_reference(mask):
    """Kaggle's widespread reference, pixel by pixel."""
    runs, previous = [], -2
    for pixel in np.flatnonzero(mask.T.ravel()):
        if pixel > previous + 1:
            runs += [pixel + 1, 0]
        runs[-1] += 1
        previous = pixel
    return " ".join(map(str, runs))


def test_counts_down_the_columns_from_one():
    label_map = np.array([[0, 1, 0], [2, 1, 0]])
    assert encode_label_map(label_map) == ["3 2", "2 1"]


def test_a_run_goes_on_over_the_end_of_a_column():
    label_map = np.array([[0, 7], [7, 7], [7, 0]])
    assert encode_label_map(label_map) == ["2 4"]


def test_runs_of_one_nucleus_stay_sorted_among_those_of_others():
    label_map = np.array([[2, 1, 2, 1]])
    assert encode_label_map(label_map) == ["2 1 4 1", "1 1 3 1"]


def test_an_empty_label_map_has_no_text():
    assert encode_label_map(np.zeros((3, 4), np.uint16)) == []
    assert encode_label_map(np.zeros((0, 4), np.uint16)) == []


def test_ids_above_a_byte_stay_apart():
    label_map = np.arange(300, dtype=np.uint16).reshape(20, 15)
    assert len(encode_label_map(label_map)) == 299


@given(LABEL_MAPS)
def test_equals_the_reference_mask_by_mask(label_map):
    ids = np.unique(label_map[label_map > 0])
    assert encode_label_map(label_map) == [encode_by_reference(label_map == i) for i in ids]


@given(LABEL_MAPS)
def test_decoding_inverts_encoding(label_map):
    texts = encode_label_map(label_map)
    ids = np.unique(np.append(0, label_map))
    decoded = decode_rles(texts, label_map.shape)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(ids[decoded], label_map)
    for label, text in enumerate(texts, start=1):
        np.testing.assert_array_equal(decode_rle(text, label_map.shape), decoded == label)


def test_views_that_are_not_contiguous_encode_alike():
    label_map = np.random.default_rng(0).integers(0, 4, (7, 10)).astype(np.int32)
    for view in (label_map[::-1], label_map[:, ::-1], label_map.T, label_map[::2, 1:]):
        assert encode_label_map(view) == encode_label_map(view.copy())


def test_the_empty_text_is_the_empty_mask():
    assert not decode_rle("", (3, 2)).any()
    assert decode_rles([], (3, 2)).shape == (3, 2)


def test_runs_that_touch_are_accepted():
    np.testing.assert_array_equal(decode_rle("1 2 3 1", (2, 2)), [[True, True], [True, False]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 x", "'x' is no whole number"),
        ("1 2.0", "'2.0' is no whole number"),
        ("1 -2", "'-2' is no whole number"),
        ("nan", "'nan' is no whole number"),
        ("1 ²", "no whole number"),
        ("1 1_0", "no whole number"),
        ("1 " + "9" * 30, "no whole number"),
        ("1 2 3", "3 numbers"),
        ("0 2", "below 1"),
        ("1 0", "has no length"),
        ("1 7", "leaves the image"),
        ("7 1", "leaves the image"),
        ("999999999999999999 999999999999999999", "leaves the image"),
        ("4 1 1 1", r"run 2 \(`1 1`\) starts before"),
        ("1 3 2 1", "starts before"),
    ],
)
def test_bad_runs_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        decode_rle(text, (2, 3))


def test_a_pixel_in_two_nuclei_is_refused():
    with pytest.raises(InputError, match="nucleus 3: pixel 4 is in nucleus 1 already"):
        decode_rles(["3 2", "1 1", "4 1"], (2, 3))


def decode_by_reference(text, size):
    """Number by number; None where it is refused."""
    tokens = text.split()
    if len(tokens) % 2 or any(set(token) - set("0123456789") or len(token) > 18 for token in tokens):
        return None
    pixels, end = [], 0
    for start, length in zip(map(int, tokens[::2]), map(int, tokens[1::2]), strict=True):
        if start <= end or length < 1 or start + length - 1 > size:
            return None
        end = start + length - 1
        pixels += range(start - 1, end)
    return pixels


@given(
    st.lists(
        st.integers(0, 30).map(str) | st.sampled_from(["9" * 18, "9" * 19, "-1", "1.5", "²", "٣", "+1", "1_0", "x"])
    )
)
def test_whatever_the_text_it_decodes_as_the_reference_or_is_refused(tokens):
    text = " ".join(tokens)
    expected = decode_by_reference(text, 40)
    if expected is None:
        with pytest.raises(InputError):
            decode_pixels(text, (5, 8))
    else:
        assert decode_pixels(text, (5, 8)).tolist() == expected
