"""Noise alone is told from the faintest image with something in it."""

import cv2
import numpy as np
import pytest

from pipeline.images.raw import to_rgb
from pipeline.images.splits import PreparedSplit
from pipeline.predict.noise import is_noise

SIDE = 300
RNG = np.random.default_rng(0)
WHITE = RNG.normal(0, 1, (SIDE, SIDE))
NOISE = {
    "16 bits": (400 + 15 * WHITE).astype(np.uint16),
    "8 bits": (12 + 1.5 * WHITE).round().astype(np.uint8),
    "light": (230 + 3 * WHITE).round().astype(np.uint8),
    "floats": 0.01 * WHITE,
    "counts": RNG.poisson(3, (SIDE, SIDE)).astype(np.uint16),
    "blurred": 1000 + 50 * cv2.GaussianBlur(WHITE, (0, 0), 1.5),
    "hot pixels": np.where(RNG.random((SIDE, SIDE)) < 0.0005, 4000, 400 + 15 * WHITE).clip(0).astype(np.uint16),
    "colours": (100 + 9 * RNG.normal(0, 1, (SIDE, SIDE, 3))).round().astype(np.uint8),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_of_any_kind(name):
    assert is_noise(to_rgb(NOISE[name]))


@pytest.mark.parametrize("radius", [4, 8, 60])
@pytest.mark.parametrize("level", [8, 160])
def test_one_nucleus_is_something(radius, level):
    """Also one of 8 deviations of the noise."""
    disc = np.zeros((512, 512), np.float32)
    cv2.circle(disc, (300, 250), radius, 1, -1)
    frame = 400 + 15 * (RNG.normal(0, 1, disc.shape) + level * cv2.GaussianBlur(disc, (0, 0), 1))
    assert not is_noise(to_rgb(frame.astype(np.uint16)))


def test_blank_and_tiny_images_are_left_to_the_networks():
    for image in (
        np.zeros((100, 100, 3), np.uint8),
        np.full((1, 1, 3), 9, np.uint8),
        to_rgb(NOISE["8 bits"][:30, :30]),
    ):
        assert not is_noise(image)


def test_no_image_of_the_sample_is_noise(prepared_sample):
    images = PreparedSplit.open(prepared_sample)
    assert len(images) == 59
    assert not any(is_noise(np.array(image)) for _, image in images.images())
