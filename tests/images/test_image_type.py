"""The type of an image follows from its pixels: light or dark, grey or stained, on what background."""

from itertools import product

import numpy as np
import pytest

from pipeline.images.image_type import IMAGE_TYPES, _median_of, classify_image_type, is_stained
from pipeline.images.splits import PreparedSplit

PURPLE, PINK, WHITE = (110, 50, 140), (200, 130, 190), (235, 230, 238)


def draw(background, nuclei, shape=(80, 100), share=0.2):
    """Return an image of one colour with a share of its pixels in another, and a little noise."""
    rng = np.random.default_rng(0)
    grey = rng.integers(-3, 4, (*shape, 1))
    image = np.where(rng.random((*shape, 1)) < share, np.array(nuclei), np.array(background)) + grey
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("background", "nuclei", "expected"),
    [
        ((10, 10, 10), (150, 150, 150), "fluorescence"),
        ((0, 0, 0), (20, 20, 20), "fluorescence"),
        ((200, 200, 200), (90, 90, 90), "brightfield"),
        (WHITE, PURPLE, "purple_on_white"),
        (PINK, PURPLE, "purple_on_purple"),
        ((5, 5, 30), (30, 200, 60), "colour_on_dark"),
    ],
)
def test_a_drawn_image_of_each_type(background, nuclei, expected):
    image = draw(background, nuclei)
    assert classify_image_type(image) == expected
    for symmetric in (image[::-1], image[:, ::-1], image.transpose(1, 0, 2)):
        assert classify_image_type(np.ascontiguousarray(symmetric)) == expected


@pytest.mark.parametrize(
    ("colour", "stained"), [((60, 20, 80), False), (PINK, True), (WHITE, True), ((9, 9, 90), False)]
)
def test_stained_is_what_is_light_and_has_colours(colour, stained):
    image = np.full((64, 70, 3), colour, np.uint8)
    assert is_stained(image) == stained
    assert not is_stained(image[..., 1:2].repeat(3, axis=2))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (70, 40000), (2000, 2000)])
def test_all_parts_of_an_image_of_any_shape_are_looked_at(shape):
    """Wherever the smaller part of an image lies, the larger one says what it is."""
    for start, side in product((0, 1), (0, 1)):
        for colour, other in ((PINK, (20, 20, 20)), ((20, 20, 20), PINK)):
            image = np.full((*shape, 3), colour, np.uint8)
            part = shape[side] // 4
            np.moveaxis(image, side, 0)[start * (shape[side] - part) :][:part] = other
            assert is_stained(image) == (colour == PINK)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 3), (4, 9), (50, 51)])
def test_counting_levels_gives_the_median(shape):
    rng = np.random.default_rng(shape[1])
    for most in (1, 5, 766):
        levels = rng.integers(0, most, shape).astype(np.uint16)
        assert _median_of(levels) == np.median(levels)


def test_inverting_a_grey_image_changes_dark_to_light():
    image = draw((10, 10, 10), (150, 150, 150))
    assert classify_image_type(255 - image) == "brightfield"


@pytest.mark.parametrize("level", [0, 94, 96, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (3, 2)])
def test_tiny_images(shape, level):
    expected = "brightfield" if level > 95 else "fluorescence"
    assert classify_image_type(np.full((*shape, 3), level, np.uint8)) == expected


def test_a_pixel_of_colour():
    assert classify_image_type(np.full((1, 1, 3), PURPLE, np.uint8)) in IMAGE_TYPES


@pytest.fixture(scope="module")
def split(prepared_sample):
    return PreparedSplit.open(prepared_sample)


class TestSample:
    def test_all_four_types_of_stage_1_are_there(self, split):
        assert split.table["image_type"].value_counts().to_dict() == {
            "fluorescence": 46,
            "purple_on_purple": 8,
            "purple_on_white": 3,
            "brightfield": 2,
        }

    def test_grey_types_are_the_images_whose_channels_are_equal(self, split):
        for row in split.table.itertuples():
            image = split.image(row.image_id)
            grey = bool((image == image[..., :1]).all())
            assert grey == (row.image_type in ("fluorescence", "brightfield")), row.image_id

    def test_nuclei_are_bright_in_fluorescence_and_dark_elsewhere(self, split):
        for row in split.table.itertuples():
            luminance = split.image(row.image_id).mean(axis=2)
            nuclei = split.label_map(row.image_id) > 0
            bright = luminance[nuclei].mean() > luminance[~nuclei].mean()
            assert bright == (row.image_type == "fluorescence"), row.image_id
