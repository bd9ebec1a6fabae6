"""Brightness: the one rule by which an image's range becomes the levels 0 .. 255 that the network sees.

In: an image of any real type. Out: the same image in uint8, its range stretched linearly, all channels alike, so that
colours keep their hue. Fluorescence images of the competition end at 15 of 255 as often as at 255.

Of a stained image the network sees how much light it absorbs: the optical densities of its channels, their colours
paled, stretched in the same way. There nuclei are bright on dark as in fluorescence, since they absorb most. Colours
tell them from what lies around them, but are others in every laboratory: a third of them is kept.

The range is that of the image smoothed by a median of 3 x 3, in which hot and dead pixels are gone. A share of it is
cut off at each end, but never more pixels than a nucleus has: in a large frame the brightest thousandth may be all the
nuclei that there are. Where there is nothing else, noise would be stretched: so the range is at least a number of times
as wide as the noise, and as the steps between values. All of this moves along with the values: whatever they are
multiplied by, and whatever is added to them, the levels are the same. A density alone needs to know where no light is:
what is added to the values of a stained image changes how it is seen.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.image_type import is_stained
from pipeline.params import ContrastParams

# The name of an image; (H, W, 3) uint8 RGB.
Named = tuple[str, NDArray[np.uint8]]

# What is cut off at each end: this share of the pixels, but no more than so many of them.
_CUT_SHARE, _CUT_PX = 0.001, 50
# Noise is the standard deviation within blocks, in the block at this percentile, of mere background. In small images
# blocks are smaller, down to a side of 4; fewer than 20 say nothing.
_BLOCK_PX, _QUIET_PERCENT, _LEAST_BLOCKS = 16, 5, 20
# The range is at least so many times as wide as the noise: as it is in every image of the competition that is shown as
# it is, where the least is 44.
_NOISE_SPAN = 44
# And at least so many times as the step between two values, unless it is more than half of all that the type can hold.
_STEP_SPAN = 8
_STRIP_VALUES = 2**20  # at a time: floats of a whole image would be many times its size
# Halves are rounded up, and with them what 32 bits of a float cannot tell from a half.
_HALF = 0.5 + 2**-10
_HALF_NOISE = 3  # levels by which the noise of rounded values may move the range
_LEVELS = np.arange(256)
# The optical density of each level, minus the natural logarithm of the share of light, as 0 .. 255; 255 stands for 2,
# which leaves 14 %: nuclei are seldom denser.
_DENSITIES = (np.minimum(-np.log(np.maximum(_LEVELS, 1) / 255), 2) * 127.5).astype(np.float32)
# A third of each channel's own density, the rest the mean of all three: by it stained images that training lacks score
# best, and those that it has no less than in full colours (pipeline/studies/unseen.md).
_PALE = np.full((3, 3), 2 / 9, np.float32) + np.eye(3, dtype=np.float32) / 3
# An image whose brightest pixels stay below this is brightened for display; a screen shows little of it otherwise.
_DIM = 160


def to_levels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image (H, W, C) of any real type, its values finite, C of 1 or 3, as uint8.

    Of uint8 it is the image itself; the range of another is brought to 0 .. 255.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16:
        image = _normalise(image)
    low, span = find_range(image)
    levels = np.empty(image.shape, np.uint8)
    for rows in split_rows(image):
        levels[rows] = _level(image[rows], low, span)
    return levels


class Contrast(NamedTuple):
    """How an image (H, W, 3) uint8 becomes what the network sees.

    Attributes:
        levels: (256,) uint8, in which each value is looked up.
        as_density: the values are those of `to_densities`.
    """

    levels: NDArray[np.uint8]
    as_density: bool


def find_contrast(image: NDArray[np.uint8], params: ContrastParams) -> Contrast:
    """Return how an image (H, W, 3) uint8 is shown; where neither density nor a stretch is asked for, as it is."""
    as_density = params.density and is_stained(image)
    low, span = 0.0, 255.0
    if params.stretch:
        low, span = find_range(to_densities(image) if as_density else image)
        # What `to_levels` made is not rounded a second time.
        if low == 0 and abs(span - 255) < _HALF_NOISE:
            span = 255.0
    return Contrast(_level(_LEVELS, low, span), as_density)


def to_densities(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the optical densities of an image (H, W, 3) uint8, 0 .. 2 as 0 .. 255, their colours paled to a third."""
    densities = np.empty(image.shape, np.uint8)
    for rows in split_rows(image):
        strip = cv2.transform(cv2.LUT(np.ascontiguousarray(image[rows]), _DENSITIES), _PALE)
        densities[rows] = np.rint(strip)
    return densities


def find_range(image: NDArray[Any]) -> tuple[float, float]:
    """Return the value of an image that becomes 0, and how far above it, more than 0, is the one that becomes 255.

    Args:
        image: (H, W, C) uint8, uint16 or float32, C of 1 or 3.
    """
    cut = min(int(_CUT_SHARE * image.size), _CUT_PX * image.shape[2])
    darkest, brightest, values, deviations = [], [], [], []
    thin = 1 if image.size < _STRIP_VALUES else 4  # each so manyth pixel has all values that there are many of
    for strip in _smooth(image):
        lowest, highest = _find_ends(strip, cut)
        darkest.append(lowest)
        brightest.append(highest)
        values.append(_list_values(strip[::thin, ::thin]))
        deviations.append(_find_deviations(strip, image.shape))
    low, high = float(np.sort(np.concatenate(darkest))[cut]), float(np.sort(np.concatenate(brightest))[-1 - cut])
    noise = _find_noise(np.concatenate(deviations))
    steps = np.diff(np.unique(np.concatenate(values)).astype(np.float64))
    step = float(steps.min()) if steps.size else 1.0
    most = np.iinfo(image.dtype).max if image.dtype.kind == "u" else np.inf
    return low, max(high - low, _NOISE_SPAN * noise, 0.0 if high - low > most / 2 else _STEP_SPAN * step)


def apply_contrast(image: NDArray[np.uint8], contrast: Contrast) -> NDArray[np.uint8]:
    """Return an image, or a part of it, (H, W, 3) uint8 as the network sees it."""
    values = np.ascontiguousarray(to_densities(image) if contrast.as_density else image)
    return np.asarray(cv2.LUT(values, contrast.levels), np.uint8).reshape(values.shape)


class Shown:
    """An image (H, W, 3) uint8 as the network sees it, of which no more is made than is looked at."""

    def __init__(self, image: NDArray[np.uint8], contrast: Contrast) -> None:
        self.shape = image.shape
        self._image, self._contrast = image, contrast

    def __getitem__(self, window: Any) -> NDArray[np.uint8]:
        """Return a window (h, w, 3) uint8; `window` indexes rows and columns."""
        return apply_contrast(self._image[window], self._contrast)


def show_images(images: Iterable[Named], params: ContrastParams) -> Iterator[Named]:
    """Yield each image (H, W, 3) uint8 RGB as networks see it, under its name."""
    for name, image in images:
        seen = apply_contrast(image, find_contrast(image, params))
        del image  # who waits for the next one holds no image that was handed on
        yield name, seen
        del seen


def brighten_image(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """Return an image (H, W, 3) uint8 RGB as it is shown to people, and whether it had to be brightened."""
    brightest = sum(find_range(image))
    if brightest >= _DIM:
        return image, False
    gain = 255 / max(brightest, 1.0)
    levels = np.minimum(np.arange(256, dtype=np.float32) * np.float32(gain), 255).astype(np.uint8)
    return apply_contrast(image, Contrast(levels, as_density=False)), True


def split_rows(image: NDArray[Any]) -> Iterator[slice]:
    """Yield the rows of an image in strips, whole blocks each but for the last."""
    rows = max(1, _STRIP_VALUES // max(1, image[:1].size) // _BLOCK_PX) * _BLOCK_PX
    return (slice(top, min(top + rows, len(image))) for top in range(0, len(image), rows))


def _level(values: NDArray[Any], low: float, span: float) -> NDArray[np.uint8]:
    return np.floor((values - low) * (255 / span) + _HALF).clip(0, 255).astype(np.uint8)


def _find_ends(strip: NDArray[Any], cut: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lowest and the highest `cut` + 1 values, in any order, or all where there are fewer."""
    if strip.dtype == np.uint8:
        counts = _count_levels(strip)
        levels = np.arange(256, dtype=np.uint8)
        low, high = (order.repeat(counts[order].clip(max=cut + 1))[: cut + 1] for order in (levels, levels[::-1]))
        return low, high
    last = strip.size - 1
    most = min(cut, last)
    values = np.partition(strip.ravel(), (most, last - most))
    return values[: most + 1].copy(), values[last - most :].copy()  # of the strip itself nothing is kept


def _list_values(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values that there are, each once; sorting those of uint8 would take half of the time of it all."""
    return np.flatnonzero(_count_levels(values)) if values.dtype == np.uint8 else np.unique(values)


def _count_levels(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return np.asarray(cv2.calcHist([flat], [0], None, [256], [0, 256]).ravel(), np.int64)


def _find_noise(deviations: NDArray[np.float32]) -> float:
    """Return the noise, by the standard deviations within all blocks."""
    # Blocks of one value are a border put around an image, unless most are: then it has no noise.
    noisy = deviations[deviations > 0]
    usual = noisy if 2 * len(noisy) > len(deviations) else deviations
    return float(np.percentile(usual, _QUIET_PERCENT)) if len(usual) >= _LEAST_BLOCKS else 0.0


def _find_deviations(strip: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the standard deviation in each block of a strip (rows, W, C) of an image of `shape`, of all channels."""
    grey: NDArray[np.float32] = np.mean([strip[..., i] for i in range(shape[2])], axis=0, dtype=np.float32)
    side = _BLOCK_PX
    while side > 4 and min(shape[:2]) < 16 * side:
        side //= 2
    rows, columns = len(grey) // side, shape[1] // side
    blocks = grey[: rows * side, : columns * side].reshape(rows, side, columns, side)
    blocks = blocks - blocks[:, :1, :, :1]  # whatever the value of a block that has one, its deviation is exactly 0
    return np.asarray(blocks.std(axis=(1, 3)).ravel(), np.float32)


def _normalise(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return the values as float32 between 0 and 1: they neither overflow, nor vanish beside what was added to them."""
    least, most = float(image.min()) / 2, float(image.max()) / 2
    normal = np.zeros(image.shape, np.float32)
    if most > least:
        for rows in split_rows(image):
            normal[rows] = (image[rows].astype(np.float64) / 2 - least) / (most - least)
    return normal


def _smooth(image: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the median of 3 x 3 pixels around each, strip by strip, (rows, W, C) of the image's type."""
    for rows in split_rows(image):
        top = max(0, rows.start - 1)
        strip = np.ascontiguousarray(image[top : rows.stop + 1])
        yield cv2.medianBlur(strip, 3).reshape(strip.shape)[rows.start - top :][: rows.stop - rows.start]
