"""The type of an image, found from its pixels: how it was stained and lit.

In: a uint8 RGB image. Out: one of `IMAGE_TYPES`. The limits below were read off the histograms of the 664 images of
stage1_train, in gaps that are several times wider than the spread beside them; no label was used.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGE_TYPES = ("fluorescence", "brightfield", "purple_on_white", "purple_on_purple", "colour_on_dark")
# Stains that light came through: coloured, and light.
STAINED_TYPES = ("purple_on_white", "purple_on_purple")

# The mean of max(R, G, B) - min(R, G, B) is 0 in every grey image and at least 11.9 in every stained one.
_COLOUR_CHROMA = 4.0
# The median of mean(R, G, B) is at most 52 in dark images and at least 131 in light ones.
_LIGHT_MEDIAN = 95.0
# Values of an image that its type is found from, at least.
_LOOKED_AT = 2**17
# The mean chroma of the brightest fifth, the background of a light image: at most 16 on white, at least 37 on purple.
_PURPLE_BACKGROUND_CHROMA = 26.0


def classify_image_type(image: NDArray[np.uint8]) -> str:
    """Return the type of an image (H, W, 3) uint8 RGB.

    - fluorescence: grey, nuclei bright on dark
    - brightfield: grey, nuclei dark on light
    - purple_on_white: stained tissue or cells on a pale background
    - purple_on_purple: stained tissue whose background is stained too
    - colour_on_dark: colours on a dark background
    """
    levels, chroma = _measure_colours(image)
    light = _median_of(levels) / 3 >= _LIGHT_MEDIAN
    if float(chroma.mean()) < _COLOUR_CHROMA:
        return "brightfield" if light else "fluorescence"
    if not light:
        return "colour_on_dark"
    background = chroma[levels >= np.percentile(levels, 80)]
    return "purple_on_purple" if float(background.mean()) >= _PURPLE_BACKGROUND_CHROMA else "purple_on_white"


def is_stained(image: NDArray[np.uint8]) -> bool:
    """Say whether an image (H, W, 3) uint8 RGB is of stains that light came through."""
    return classify_image_type(image) in STAINED_TYPES


def _measure_colours(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return R + G + B and max(R, G, B) - min(R, G, B) of pixels evenly over an image, each (h, w)."""
    step = math.isqrt(image.size // _LOOKED_AT)  # a part of the pixels says the same in a part of the time
    rows, columns = (max(1, min(step, length // 64)) for length in image.shape[:2])
    # Channel by channel: numpy reduces a last axis of three slowly.
    red, green, blue = (np.asarray(plane, np.uint8) for plane in cv2.split(image[::rows, ::columns]))
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return red.astype(np.uint16) + green + blue, chroma


def _median_of(levels: NDArray[np.uint16]) -> float:
    """Return the median of values up to 3 * 255, counted in place of sorted."""
    counts = cv2.calcHist([levels], [0], None, [3 * 255 + 1], [0, 3 * 255 + 1])
    up_to = np.cumsum(counts.astype(np.int64))
    middle = np.searchsorted(up_to, [(levels.size - 1) // 2, levels.size // 2], side="right")
    return float(middle.mean())
