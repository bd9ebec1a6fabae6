"""The stretch, by hand: ends go to 0 and 255, noise stays dark, channels are alike, and so are numbers of any range.

Of stained images optical densities are stretched: the darker a pixel, the brighter it is seen.
"""

import cv2
import numpy as np
import pytest

from pipeline.images.contrast import (
    Shown,
    apply_contrast,
    brighten_image,
    find_contrast,
    find_range,
    show_images,
    to_densities,
    to_levels,
)
from pipeline.images.splits import PreparedSplit
from pipeline.params import ContrastParams

STRETCH = ContrastParams(stretch=True, density=False)
DENSITY = ContrastParams(stretch=True, density=True)
IDENTITY = np.arange(256)


def image_of(*levels):
    """Return bars of three columns each: in the middle one of a bar no neighbour is of another."""
    return np.repeat(np.array(levels, np.uint8), 3)[None, :, None].repeat(4, axis=0).repeat(3, axis=2)


def see(image, params=STRETCH):
    return apply_contrast(image, find_contrast(image, params))


def draw_tissue(nuclei=(90, 60, 140), around=(230, 150, 200), side=96, noise=0):
    """Return an image (H, W, 3) uint8 of nine nuclei of one colour on another, and where they are (H, W) bool."""
    where = np.zeros((side, side), np.uint8)
    for centre in np.ndindex(3, 3):
        cv2.circle(where, [(2 * c + 1) * side // 6 for c in centre], side // 12, 1, -1)
    image = np.where(where[..., None] > 0, np.array(nuclei), np.array(around))
    image = image + np.random.default_rng(0).integers(-noise, noise + 1, (side, side, 1))
    return image.clip(0, 255).astype(np.uint8), where > 0


def draw_frame(side=512, places=((250, 300),), noise=15.0, level=2400.0, radius=8, seed=3):
    """Return a frame (H, W) as a camera of 12 bits takes it: bright discs on a noisy ground."""
    discs = np.zeros((side, side), np.float32)
    for row, column in places:
        cv2.circle(discs, (column, row), radius, 1, -1)
    values = 400 + np.random.default_rng(seed).normal(0, noise, discs.shape)
    return (values + level * cv2.GaussianBlur(discs, (0, 0), 1)).clip(0, 4095).round().astype(np.uint16)


def test_the_range_of_the_image_becomes_the_whole_range():
    """(75 - 50) * 255 / 100 = 63.75 and (110 - 50) * 255 / 100 = 153; what lies outside is cut."""
    table = find_contrast(image_of(50, 60, 150), STRETCH).levels
    assert table.dtype == np.uint8
    assert table[[0, 50, 75, 110, 150, 255]].tolist() == [0, 0, 64, 153, 255, 255]


def test_an_image_of_full_range_and_one_not_asked_for_are_kept():
    off = STRETCH.model_copy(update={"stretch": False})
    assert np.array_equal(find_contrast(image_of(0, 255), STRETCH).levels, IDENTITY)
    assert np.array_equal(find_contrast(image_of(50, 60), off).levels, IDENTITY)


@pytest.mark.parametrize("level", [0, 9, 200])
def test_a_blank_image_stays_dark(level):
    image = image_of(level, level)
    assert not apply_contrast(image, find_contrast(image, STRETCH)).any()


def test_few_steps_are_stretched_as_if_they_were_eight():
    """2 levels with a step of 2: 2 * 255 / (8 * 2) = 31.9. Of what fills its type, 0 and 255 say, nothing is left."""
    blank = np.full((64, 64, 3), 10, np.uint8)
    blank[40:, 40:] = 12
    assert np.unique(see(blank)).tolist() == [0, 32]
    assert np.unique(see((blank > 10).astype(np.uint8) * 255)).tolist() == [0, 255]


def test_hot_and_dead_pixels_do_not_count():
    image = np.linspace(50, 100, 100).astype(np.uint8)[:, None, None].repeat(100, axis=1).repeat(3, axis=2)
    image[0, 0], image[99, 99], image[20, 30], image[70, 5] = 0, 255, 255, 0
    assert find_contrast(image, STRETCH).levels[[50, 75, 100]].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("lit", "top"), [(9, 40), (11, 90)])
def test_a_thousandth_is_cut_off_but_never_more_than_fifty_pixels(lit, top):
    """Of 400 x 400 pixels a thousandth is 160. The median takes 4 corners of a block: 41 and 51 pixels are left."""
    image = np.full((400, 400, 1), 20, np.uint8)
    image[200:300, 100:300] += np.arange(200, dtype=np.uint8)[:, None] // 10
    image[100:105, 100 : 100 + lit] = 90
    low, span = find_range(image)
    assert low == 20
    assert (low + span > 80) == (top == 90)


@pytest.mark.parametrize("side", [128, 512, 2048])
def test_one_nucleus_is_as_bright_in_a_frame_of_any_size(side):
    frame = to_levels(draw_frame(side, [(side // 2, side // 2)])[..., None])
    seen = see(frame)
    middle = slice(side // 2 - 4, side // 2 + 4)
    assert seen[middle, middle].min() > 240
    assert np.median(seen) < 10


@pytest.mark.parametrize("radius", [4, 8])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_small_nucleus_is_brighter_than_noise_in_numbers_of_any_type(radius, dtype):
    frame = draw_frame(radius=radius)
    for values in (frame, frame * 16.0):
        seen = see(to_levels(values.astype(dtype)[..., None]))
        assert seen[250, 300] > 200
        assert np.percentile(seen, 99) < 70


@pytest.mark.parametrize("blur_px", [0, 1, 2])
@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("border_px", [0, 40])
def test_noise_alone_stays_dark(blur_px, scale, border_px):
    noise = np.random.default_rng(0).normal(0, 5, (300, 300)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), blur_px) if blur_px else noise
    values = np.pad((1000 + scale * noise).astype(np.uint16), border_px, constant_values=1000)
    assert cv2.medianBlur(see(to_levels(values[..., None])), 3).max() < 110


@pytest.mark.parametrize("factor", [0.02, 0.05, 0.1, 0.5])
def test_a_dim_picture_is_as_bright_in_numbers_of_any_type(factor):
    frame = np.round(draw_frame(200, [(60, 60), (140, 120)]) / 16 * factor).astype(np.uint8)[..., None]
    expected = see(frame).astype(int)
    for other in (frame.astype(np.uint16) * 257, frame.astype(np.float32), frame / 1e5 - 3):
        assert np.abs(see(to_levels(other)) - expected).max() <= 6


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("scale", [1, 257])
def test_the_levels_move_along_with_the_values(count, scale):
    """Of the same picture in other numbers the levels are the same."""
    frame = draw_frame(200, [(40 + 30 * i, 60 + 20 * i) for i in range(count)])[..., None] // 16
    expected = see(frame.astype(np.uint8))
    for other in (frame * scale, frame * scale * 3.5e-7, frame * 1e8 + 5.0, frame.astype(np.int16) - 200):
        assert np.array_equal(see(to_levels(other)), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64])
def test_strips_change_nothing(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    image = (rng.normal(0, 1, (150, 170, 3)).cumsum(axis=0) * 100 + 5000).clip(0).astype(dtype)
    whole = to_levels(image)
    expected = find_contrast(whole, STRETCH)
    monkeypatch.setattr("pipeline.images.contrast._STEP_SPAN", 0)  # is looked for in each so manyth pixel of a strip
    monkeypatch.setattr("pipeline.images.contrast._STRIP_VALUES", 170 * 3 * 16)
    assert np.array_equal(to_levels(image), whole)
    assert np.array_equal(find_contrast(whole, STRETCH).levels, expected.levels)


def test_all_channels_are_stretched_alike():
    image = np.array([[[20, 30, 60], [120, 20, 20]]], np.uint8)
    stretched = apply_contrast(image, find_contrast(image, STRETCH))
    assert stretched.tolist() == [[[0, 26, 102], [255, 0, 0]]]


@pytest.mark.parametrize("params", [STRETCH, DENSITY])
@pytest.mark.parametrize("stained", [False, True])
def test_windows_of_an_image_are_parts_of_what_is_seen_of_it(params, stained, monkeypatch):
    image = draw_tissue(noise=20)[0] if stained else np.random.default_rng(0).integers(0, 90, (96, 90, 3), np.uint8)
    contrast, before = find_contrast(image, params), image.copy()
    assert contrast.as_density == (stained and params.density)
    whole, shown = apply_contrast(image, contrast), Shown(image, contrast)
    assert shown.shape == image.shape
    for window in (np.s_[10:40, 3:90], np.s_[:], np.ix_([5, 4, 4, 9], [80, 0, 7])):
        np.testing.assert_array_equal(shown[window], whole[window])
    np.testing.assert_array_equal(image, before)
    monkeypatch.setattr("pipeline.images.contrast._STRIP_VALUES", 50 * 3 * 16)
    np.testing.assert_array_equal(apply_contrast(image, contrast), whole)


def test_densities_by_hand():
    """-ln(155 / 255) is 0.498 and -ln(94 / 255) 0.998, of 2 that are 255: 63.5 and 127.2. None is above 2."""
    light = np.array([[[255] * 3, [155] * 3, [94] * 3, [34] * 3, [0] * 3]], np.uint8)
    assert to_densities(light)[0].tolist() == [[0] * 3, [63] * 3, [127] * 3, [255] * 3, [255] * 3]
    # Of (127.2, 0, 63.5) the mean is 63.6; two thirds of it and a third of each are:
    assert to_densities(np.array([[[94, 255, 155]]], np.uint8)).tolist() == [[[85, 42, 64]]]


def test_densities_are_stretched_as_all_levels_are():
    tissue, _ = draw_tissue((104, 104, 200), (245, 245, 245), noise=10)
    plain = DENSITY.model_copy(update={"stretch": False})
    np.testing.assert_array_equal(see(tissue, plain), to_densities(tissue))
    assert see(tissue, plain).max() < 128
    assert see(tissue, DENSITY).max() == 255


def test_stained_nuclei_glow_whatever_lies_around_them():
    for around in ((230, 230, 230), (230, 150, 200), (200, 160, 210)):
        tissue, where = draw_tissue(around=around, noise=10)
        seen = see(tissue, DENSITY).mean(axis=2)
        assert np.median(seen[where]) > 150
        assert np.median(seen[~where]) < 90


def test_a_stained_image_of_two_colours_becomes_two_levels():
    ink, where = draw_tissue((0, 0, 80), (255, 240, 255))
    seen = see(ink, DENSITY)
    assert (seen[where] == seen[where][0]).all()
    assert seen[where].max() == 255
    assert seen[~where].max() < 16


@pytest.mark.parametrize("factor", [0.7, 0.8])
def test_light_that_is_dimmed_changes_little(factor):
    tissue, _ = draw_tissue(noise=10)
    dimmed = (tissue * factor).round().astype(np.uint8)
    assert np.abs(see(tissue, DENSITY).astype(int) - see(dimmed, DENSITY)).max() <= 6


def test_what_glows_and_what_has_no_colour_is_seen_as_it_is():
    dark, grey = image_of(10, 10, 10, 60, 200), image_of(200, 200, 200, 190, 90)
    green, _ = draw_tissue((30, 200, 60), (5, 5, 30))
    for image in (dark, grey, green):
        assert np.array_equal(see(image, DENSITY), see(image))


@pytest.mark.parametrize("border_px", [0, 40])
def test_noise_of_light_alone_stays_faint(border_px):
    noise = np.random.default_rng(0).normal(0, 3, (300, 300, 1))
    blank = (np.array([230, 200, 215]) + noise).round().astype(np.uint8)
    framed = np.full((300 + 2 * border_px, 300 + 2 * border_px, 3), (230, 200, 215), np.uint8)
    framed[border_px:, border_px:][:300, :300] = blank
    assert find_contrast(framed, DENSITY).as_density
    seen = see(framed, DENSITY).astype(int)
    assert np.percentile(seen - np.median(seen, axis=(0, 1)), 95) < 60


def test_where_all_that_differs_is_too_dense_to_tell_apart_it_stays_dark():
    """What lets less than 14 % through has a density of 2, whatever it is; two specks are no range."""
    cyan = np.random.default_rng(0).integers(0, 35, (60, 60, 3)).astype(np.uint8)
    cyan[..., 1:] = 200, 220
    specks = np.full((300, 300, 3), (230, 200, 215), np.uint8)
    specks[50:55, 50:55], specks[80:85, 80:85] = (10, 9, 9), (20, 9, 9)
    assert not np.ptp(see(cyan, DENSITY), axis=(0, 1)).any()
    assert np.median(see(specks, DENSITY)) < 50


def test_nuclei_of_all_stained_images_of_the_sample_are_brighter_than_around_them(prepared_sample):
    split = PreparedSplit.open(prepared_sample)
    stained = 0
    for (_, image), (_, label_map) in zip(split.images(), split.label_maps(), strict=True):
        contrast = find_contrast(image, DENSITY)
        if contrast.as_density and label_map.any():
            stained += 1
            seen = apply_contrast(image, contrast).mean(axis=2)
            assert np.mean(seen[label_map > 0]) > 1.3 * np.mean(seen[label_map == 0])
    assert stained >= 5


def test_images_are_stretched_each_by_its_own_range():
    images = [("a", image_of(*range(50, 151, 10))), ("b", image_of(*range(10, 61, 5)))]
    stretched = list(show_images(iter(images), STRETCH))
    assert [name for name, _ in stretched] == ["a", "b"]
    assert [image[0, [0, 15, -1], 0].tolist() for _, image in stretched] == [[0, 128, 255]] * 2
    assert images[0][1][0, [0, -1], 0].tolist() == [50, 150]


def test_a_dim_image_is_brightened_for_display_and_a_bright_one_kept():
    dim, bright = image_of(*range(0, 52, 3)), image_of(0, 200)
    shown, brightened = brighten_image(dim)
    assert brightened
    assert shown[0, [0, -1], 0].tolist() == [0, 255]
    assert brighten_image(bright)[0] is bright
    assert not brighten_image(bright)[1]
    assert not brighten_image(image_of(0, 0))[0].any()


def test_noise_and_steps_widen_the_range_of_no_image_of_the_sample(prepared_sample, monkeypatch):
    images = [image for _, image in PreparedSplit.open(prepared_sample).images()]
    found = [find_range(image) for image in images]
    seen = [find_contrast(image, DENSITY) for image in images]
    monkeypatch.setattr("pipeline.images.contrast._NOISE_SPAN", 0)
    monkeypatch.setattr("pipeline.images.contrast._STEP_SPAN", 0)
    assert found == [find_range(image) for image in images]
    for image, contrast in zip(images, seen, strict=True):
        assert np.array_equal(find_contrast(image, DENSITY).levels, contrast.levels)
