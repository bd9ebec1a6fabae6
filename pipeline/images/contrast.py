"""Brightness: the one rule by which an image's range becomes the levels 0 .. 255 that the network sees.

In: an image of any real type. Out: the same image in uint8, its range stretched linearly, all channels alike, so that
colours keep their hue. Fluorescence images of the competition end at 15 of 255 as often as at 255.

The range is that of the image smoothed by a median of 3 x 3, in which hot and dead pixels are gone. A share of it is
cut off at each end, but never more pixels than a nucleus has: in a large frame the brightest thousandth may be all the
nuclei that there are. All of this moves along with the values: whatever they are multiplied by, and whatever is added
to them, the levels are the same. Noise would be stretched as well where there is nothing else: what the network sees
has a range that is a number of times as wide as the noise.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.params import ContrastParams

# The name of an image; (H, W, 3) uint8 RGB.
Named = tuple[str, NDArray[np.uint8]]

# What is cut off at each end: this share of the pixels, but no more than so many of them.
_CUT_SHARE, _CUT_PX = 0.001, 100
_STRIP_VALUES = 2**20  # at a time: floats of a whole image would be many times its size
# Noise is the standard deviation within blocks of this side, in the block at this percentile: one of mere background.
_BLOCK_PX, _QUIET_PERCENT = 16, 5
# Rounding to whole numbers adds to the noise: the deviation of a uniform distribution of width 1.
_ROUNDING_STD = 12**-0.5
# Halves are rounded up, and with them what 32 bits of a float cannot tell from a half.
_HALF = 0.5 + 2**-10
# An image whose brightest pixels stay below this is brightened for display; a screen shows little of it otherwise.
_DIM = 160


def to_levels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image (H, W, C) of any real type, its values finite, as uint8: its range brought to 0 .. 255.

    Whole numbers are spread no further apart than they were. C is 1 or 3.
    """
    if image.dtype == np.uint8:
        return image
    step = 1.0
    if image.dtype != np.uint16:
        image, step = _normalise(image)
    low, high = find_range(image)
    span = max(high - low, 255 * step) or 1.0
    levels = np.empty(image.shape, np.uint8)
    for rows in split_rows(image):
        levels[rows] = _level(image[rows], low, span)
    return levels


def find_contrast(image: NDArray[np.uint8], params: ContrastParams) -> NDArray[np.uint8]:
    """Return the look-up table (256,) uint8 that stretches an image (H, W, 3) uint8: the identity if not asked for.

    A range narrower than `params.noise_span` times the noise is stretched as if it were that wide: a blank image stays
    dark.
    """
    levels = np.arange(256)
    if not params.stretch:
        return levels.astype(np.uint8)
    low, high = find_range(image)
    return _level(levels, low, max(high - low, params.noise_span * find_noise(image)))


def find_range(image: NDArray[Any]) -> tuple[float, float]:
    """Return the darkest and the brightest value of an image (H, W, C) uint8, uint16 or float32, C of 1 or 3."""
    cut = min(int(_CUT_SHARE * image.size), _CUT_PX * image.shape[2])
    if image.dtype == np.uint8:
        counts = np.sum([_count_levels(strip) for strip in _smooth(image)], axis=0)
        low, high = (np.flatnonzero(np.cumsum(order) > cut)[0] for order in (counts, counts[::-1]))
        return float(low), 255.0 - float(high)
    darkest, brightest = [], []
    for strip in _smooth(image):
        last = strip.size - 1
        most = min(cut, last)
        values = np.partition(strip.ravel(), (most, last - most))
        darkest.append(values[: most + 1])
        brightest.append(values[last - most :])
    ends = np.sort(np.concatenate(darkest))[cut], np.sort(np.concatenate(brightest))[-1 - cut]
    return float(ends[0]), float(ends[1])


def find_noise(image: NDArray[np.uint8]) -> float:
    """Return the standard deviation, in levels, of what is left of the noise of an image (H, W, C) once smoothed."""
    deviations = []
    rows, columns = (min(_BLOCK_PX, side) for side in image.shape[:2])
    for strip in _smooth(image):
        grey = sum(strip[..., channel].astype(np.float32) for channel in range(image.shape[2])) / image.shape[2]
        height, width = grey.shape[0] // rows, grey.shape[1] // columns
        blocks = grey[: height * rows, : width * columns].reshape(height, rows, width, columns)
        deviations.append(blocks.std(axis=(1, 3)).ravel())
    return float(np.hypot(np.percentile(np.concatenate(deviations), _QUIET_PERCENT), _ROUNDING_STD))


def apply_contrast(image: NDArray[np.uint8], table: NDArray[np.uint8], in_place: bool = False) -> NDArray[np.uint8]:
    """Return image (H, W, 3) uint8 with every level looked up in `table` (256,) uint8.

    With `in_place` that is `image` itself, overwritten, which then must be contiguous.
    """
    if in_place:
        cv2.LUT(image, table, dst=image)
        return image
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), table), np.uint8)


def stretch_images(images: Iterable[Named], params: ContrastParams) -> Iterator[Named]:
    """Yield each image (H, W, 3) uint8 RGB stretched, under its name."""
    for name, image in images:
        stretched = apply_contrast(image, find_contrast(image, params))
        del image  # who waits for the next one holds no image that was handed on
        yield name, stretched
        del stretched


def brighten_image(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """Return an image (H, W, 3) uint8 RGB as it is shown to people, and whether it had to be brightened."""
    brightest = find_range(image)[1]
    if brightest >= _DIM:
        return image, False
    gain = 255 / max(brightest, 1.0)
    levels = np.minimum(np.arange(256, dtype=np.float32) * np.float32(gain), 255).astype(np.uint8)
    return apply_contrast(image, levels), True


def split_rows(image: NDArray[Any]) -> Iterator[slice]:
    """Yield the rows of an image in strips, whole blocks each but for the last."""
    rows = max(1, _STRIP_VALUES // max(1, image[:1].size) // _BLOCK_PX) * _BLOCK_PX
    return (slice(top, min(top + rows, len(image))) for top in range(0, len(image), rows))


def _level(values: NDArray[Any], low: float, span: float) -> NDArray[np.uint8]:
    return np.floor((values - low) * (255 / span) + _HALF).clip(0, 255).astype(np.uint8)


def _count_levels(strip: NDArray[np.uint8]) -> NDArray[np.float64]:
    return cv2.calcHist([strip.reshape(len(strip), -1)], [0], None, [256], [0, 256]).ravel().astype(np.float64)


def _normalise(image: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """Return the values as float32 between 0 and 1, and the step of whole numbers among them; 0 where there is none.

    So they neither overflow, nor vanish beside what was added to them.
    """
    least, most = float(image.min()) / 2, float(image.max()) / 2
    normal = np.zeros(image.shape, np.float32)
    if most == least:
        return normal, 0.0
    for rows in split_rows(image):
        normal[rows] = (image[rows].astype(np.float64) / 2 - least) / (most - least)
    return normal, 0.0 if image.dtype.kind == "f" else 0.5 / (most - least)


def _smooth(image: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the median of 3 x 3 pixels around each, strip by strip, (rows, W, C) of the image's type."""
    for rows in split_rows(image):
        top = max(0, rows.start - 1)
        strip = np.ascontiguousarray(image[top : rows.stop + 1])
        yield cv2.medianBlur(strip, 3).reshape(strip.shape)[rows.start - top :][: rows.stop - rows.start]
