"""The stretch, by hand: ends go to 0 and 255, noise stays dark, channels are alike, and so are numbers of any range."""

import cv2
import numpy as np
import pytest

from pipeline.images.contrast import (
    apply_contrast,
    brighten_image,
    find_contrast,
    find_noise,
    find_range,
    stretch_images,
    to_levels,
)
from pipeline.params import ContrastParams

WHOLE_RANGE = ContrastParams(stretch=True, noise_span=0)
USUAL = ContrastParams(stretch=True, noise_span=45)
IDENTITY = np.arange(256)


def image_of(*levels):
    """Return bars of three columns each: in the middle one of a bar no neighbour is of another."""
    return np.repeat(np.array(levels, np.uint8), 3)[None, :, None].repeat(4, axis=0).repeat(3, axis=2)


def see(image):
    return apply_contrast(image, find_contrast(image, USUAL))


def draw_frame(side=512, places=((250, 300),), noise=15.0, level=2400.0, radius=8, seed=3):
    """Return a frame (H, W) as a camera of 12 bits takes it: bright discs on a noisy ground."""
    discs = np.zeros((side, side), np.float32)
    for row, column in places:
        cv2.circle(discs, (column, row), radius, 1, -1)
    values = 400 + np.random.default_rng(seed).normal(0, noise, discs.shape)
    return (values + level * cv2.GaussianBlur(discs, (0, 0), 1)).clip(0, 4095).round().astype(np.uint16)


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
    assert not apply_contrast(image, find_contrast(image, USUAL)).any()


def test_a_narrow_range_is_stretched_as_if_it_were_as_wide_as_noise():
    """Without noise there is rounding: 45 / sqrt(12) = 12.99 levels, and 2 * 255 / 12.99 = 39.3."""
    image = image_of(10, 12, 14)
    assert find_noise(np.tile(image, (10, 10, 1))[:, :1].repeat(90, axis=1)) == pytest.approx(12**-0.5)
    blank = np.full((64, 64, 3), 10, np.uint8)
    blank[40:, 40:] = 12
    assert np.unique(see(blank)).tolist() == [0, 39]


def test_hot_and_dead_pixels_do_not_count():
    image = np.full((100, 100, 3), 100, np.uint8)
    image[:50] = 50
    image[0, 0], image[99, 99], image[20, 30], image[70, 5] = 0, 255, 255, 0
    assert find_contrast(image, WHOLE_RANGE)[[50, 100]].tolist() == [0, 255]


@pytest.mark.parametrize(("lit", "high"), [(10, 20.0), (11, 90.0)])
def test_a_thousandth_is_cut_off_but_never_more_than_a_hundred_pixels(lit, high):
    """Of 400 x 400 pixels a thousandth is 160. Blocks of 10 x 10 lose their corners to the median: 96 pixels each."""
    image = np.full((400, 400, 1), 20, np.uint8)
    image[100:110, 100 : 100 + lit] = 90
    assert find_range(image) == (20.0, high)


@pytest.mark.parametrize("side", [128, 512, 2048])
def test_one_nucleus_is_as_bright_in_a_frame_of_any_size(side):
    frame = to_levels(draw_frame(side, [(side // 2, side // 2)])[..., None])
    seen = see(frame)
    middle = slice(side // 2 - 4, side // 2 + 4)
    assert seen[middle, middle].min() > 240
    assert np.median(seen) < 10


@pytest.mark.parametrize("blur_px", [0, 1, 2])
@pytest.mark.parametrize("scale", [1, 30])
def test_noise_alone_stays_dark(blur_px, scale):
    noise = np.random.default_rng(0).normal(0, 5, (300, 300)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), blur_px) if blur_px else noise
    seen = see(to_levels((1000 + scale * noise).astype(np.uint16)[..., None]))
    assert cv2.medianBlur(seen, 3).max() < 80


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("scale", [1, 257])
def test_the_levels_move_along_with_the_values(count, scale):
    """Of the same picture in other numbers the levels are the same."""
    frame = draw_frame(200, [(40 + 30 * i, 60 + 20 * i) for i in range(count)])[..., None] // 16
    expected = see(frame.astype(np.uint8))
    for other in (frame * scale, frame * scale * 3.5e-7, frame * 1e8 + 5.0, frame.astype(np.int16) - 200):
        assert np.array_equal(see(to_levels(other)), expected)


def test_whole_numbers_are_spread_no_further_apart_than_they_were():
    values = np.full((20, 20, 1), 1000, np.uint16)
    values[5:15, 5:15] = 1003
    assert np.unique(to_levels(values)).tolist() == [0, 3]
    assert np.unique(to_levels(values.astype(np.int32) - 2000)).tolist() == [0, 3]
    assert np.unique(to_levels(values.astype(np.float32))).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64])
def test_strips_change_nothing(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    image = (rng.normal(0, 1, (150, 170, 3)).cumsum(axis=0) * 100 + 5000).clip(0).astype(dtype)
    whole = to_levels(image)
    expected = find_contrast(whole, USUAL)
    monkeypatch.setattr("pipeline.images.contrast._STRIP_VALUES", 170 * 3 * 16)
    assert np.array_equal(to_levels(image), whole)
    assert np.array_equal(find_contrast(whole, USUAL), expected)


def test_all_channels_are_stretched_alike():
    image = np.array([[[20, 40, 60], [120, 20, 20]]], np.uint8)
    stretched = apply_contrast(image, find_contrast(image, WHOLE_RANGE))
    assert stretched.tolist() == [[[0, 51, 102], [255, 0, 0]]]


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
    assert [image[0, ::3, 0].tolist() for _, image in stretched] == [[0, 255], [0, 255]]
    assert images[0][1][0, ::3, 0].tolist() == [50, 150]


def test_a_dim_image_is_brightened_for_display_and_a_bright_one_kept():
    dim, bright = image_of(0, 51), image_of(0, 200)
    shown, brightened = brighten_image(dim)
    assert brightened
    assert shown[0, ::3, 0].tolist() == [0, 255]
    assert brighten_image(bright)[0] is bright
    assert not brighten_image(bright)[1]
    assert not brighten_image(image_of(0, 0))[0].any()
