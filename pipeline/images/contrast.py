"""Contrast: bring every image to one range of brightness before the network sees it, or to one that people see.

In: a uint8 RGB image. Out: the same image, its range stretched linearly to 0..255, all channels alike, so that colours
keep their hue. Fluorescence images of the competition end at 15 of 255 as often as at 255.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.splits import NamedImage
from pipeline.params import ContrastParams

_SAMPLE_PIXELS = 100_000  # percentiles of more pixels than this are the same to a level
# An image whose brightest pixels stay below this is brightened for display; a screen shows little of it otherwise.
_DIM = 160


def find_contrast(image: NDArray[np.uint8], params: ContrastParams) -> NDArray[np.uint8]:
    """Return the look-up table (256,) uint8 that stretches an image (H, W, 3) uint8: the identity if not asked for.

    A range narrower than `params.min_span` levels is stretched as if it were that wide: a blank image stays dark.
    """
    levels = np.arange(256, dtype=np.float64)
    if not params.stretch:
        return levels.astype(np.uint8)
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / _SAMPLE_PIXELS)))
    sample = image[::step, ::step]
    low, high = np.percentile(sample, (params.low_percentile, params.high_percentile))
    span = max(high - low, params.min_span)
    return ((levels - low) * (255 / span)).clip(0, 255).round().astype(np.uint8)


def apply_contrast(image: NDArray[np.uint8], table: NDArray[np.uint8], in_place: bool = False) -> NDArray[np.uint8]:
    """Return image (H, W, 3) uint8 with every level looked up in `table` (256,) uint8.

    With `in_place` that is `image` itself, overwritten, which then must be contiguous.
    """
    if in_place:
        cv2.LUT(image, table, dst=image)
        return image
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), table), np.uint8)


def stretch_images(images: Iterable[NamedImage], params: ContrastParams) -> Iterator[NamedImage]:
    """Yield each image (H, W, 3) uint8 RGB stretched, under its name."""
    for name, image in images:
        stretched = apply_contrast(image, find_contrast(image, params))
        del image  # who waits for the next one holds no image that was handed on
        yield name, stretched
        del stretched


def brighten_image(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """Return an image (H, W, 3) uint8 RGB as it is shown to people, and whether it had to be brightened."""
    step = max(1, max(image.shape[:2]) // 2000)
    brightest = float(np.percentile(image[::step, ::step], 99.8))
    if brightest >= _DIM:
        return image, False
    gain = 255 / max(brightest, 1.0)
    levels = np.minimum(np.arange(256, dtype=np.float32) * np.float32(gain), 255).astype(np.uint8)
    return apply_contrast(image, levels), True
