"""The stretch, by hand: ends go to 0 and 255, a blank image stays dark, channels are alike; and what people see."""

import numpy as np
import pytest

from pipeline.images.contrast import apply_contrast, brighten_image, find_contrast, stretch_images
from pipeline.params import ContrastParams

WHOLE_RANGE = ContrastParams(stretch=True, low_percentile=0, high_percentile=100, min_span=16)
IDENTITY = np.arange(256)


def image_of(*levels):
    return np.tile(np.array(levels, np.uint8)[None, :, None], (4, 1, 3))


def test_the_range_of_the_image_becomes_the_whole_range():
    """(75 - 50) * 255 / 100 = 63.75 and (110 - 50) * 255 / 100 = 153; what lies outside is cut."""
    table = find_contrast(image_of(50, 60, 150), WHOLE_RANGE)
    assert table.dtype == np.uint8
    assert table[[0, 50, 75, 110, 150, 255]].tolist() == [0, 0, 64, 153, 255, 255]


def test_an_image_of_full_range_and_one_not_asked_for_are_kept():
    off = WHOLE_RANGE.model_copy(update={"stretch": False})
    assert np.array_equal(find_contrast(image_of(0, 255), WHOLE_RANGE), IDENTITY)
    assert np.array_equal(find_contrast(image_of(50, 60), off), IDENTITY)


@pytest.mark.parametrize("level", [0, 9, 200])
def test_a_blank_image_stays_dark(level):
    image = image_of(level, level)
    assert not apply_contrast(image, find_contrast(image, WHOLE_RANGE)).any()


def test_a_narrow_range_is_stretched_no_further_than_min_span():
    """4 of 16 levels: 4 * 255 / 16 = 63.75."""
    image = image_of(10, 12, 14)
    assert apply_contrast(image, find_contrast(image, WHOLE_RANGE))[0, :, 0].tolist() == [0, 32, 64]


def test_hot_and_dead_pixels_do_not_count():
    image = np.full((100, 100, 3), 100, np.uint8)
    image[:50] = 50
    image[0, 0], image[99, 99] = 0, 255
    table = find_contrast(image, WHOLE_RANGE.model_copy(update={"low_percentile": 0.1, "high_percentile": 99.9}))
    assert table[[50, 100]].tolist() == [0, 255]


def test_all_channels_are_stretched_alike():
    image = np.array([[[20, 40, 60], [120, 20, 20]]], np.uint8)
    stretched = apply_contrast(image, find_contrast(image, WHOLE_RANGE))
    assert stretched.tolist() == [[[0, 51, 102], [255, 0, 0]]]


def test_a_large_image_is_sampled_to_the_same_table():
    tile = np.random.default_rng(0).integers(30, 200, (64, 64, 1), dtype=np.uint8).repeat(3, axis=2)
    small, large = (find_contrast(np.tile(tile, (n, n, 1)), WHOLE_RANGE) for n in (1, 33))
    assert np.abs(small.astype(int) - large).max() <= 2


def test_in_place_is_the_same_and_no_copy():
    image = np.random.default_rng(0).integers(30, 200, (40, 50, 3), dtype=np.uint8)
    table = find_contrast(image, WHOLE_RANGE)
    expected = apply_contrast(image, table)
    assert expected is not image
    assert apply_contrast(image, table, in_place=True) is image
    np.testing.assert_array_equal(image, expected)


def test_images_are_stretched_each_by_its_own_range():
    images = [("a", image_of(50, 150)), ("b", image_of(10, 60))]
    stretched = list(stretch_images(iter(images), WHOLE_RANGE))
    assert [name for name, _ in stretched] == ["a", "b"]
    assert [image[0, :, 0].tolist() for _, image in stretched] == [[0, 255], [0, 255]]
    assert images[0][1][0, :, 0].tolist() == [50, 150]


def test_a_dim_image_is_brightened_for_display_and_a_bright_one_kept():
    dim, bright = image_of(0, 51), image_of(0, 200)
    shown, brightened = brighten_image(dim)
    assert brightened
    assert shown[0, :, 0].tolist() == [0, 255]
    assert brighten_image(bright)[0] is bright
    assert not brighten_image(bright)[1]
    assert not brighten_image(image_of(0, 0))[0].any()
