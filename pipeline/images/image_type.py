"""The type of an image, found from its pixels: how it was stained and lit.

In: a uint8 RGB image. Out: one of `IMAGE_TYPES`. The limits below were read off the histograms of the 664 images of
stage1_train, in gaps that are several times wider than the spread beside them; no label was used.
"""

import numpy as np
from numpy.typing import NDArray

IMAGE_TYPES = ("fluorescence", "brightfield", "purple_on_white", "purple_on_purple", "colour_on_dark")

# The mean of max(R, G, B) - min(R, G, B) is 0 in every grey image and at least 11.9 in every stained one.
_COLOUR_CHROMA = 4.0
# The median of mean(R, G, B) is at most 52 in dark images and at least 131 in light ones.
_LIGHT_MEDIAN = 95.0
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
    # Every other pixel each way says the same in a quarter of the time; a thin image is taken whole.
    step = 2 if min(image.shape[:2]) >= 64 else 1
    # Channel by channel: numpy reduces a last axis of three slowly.
    red, green, blue = np.moveaxis(image[::step, ::step], 2, 0).astype(np.int16).reshape(3, -1)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    luminance = (red + green + blue) / 3
    light = float(np.median(luminance)) >= _LIGHT_MEDIAN
    if float(chroma.mean()) < _COLOUR_CHROMA:
        return "brightfield" if light else "fluorescence"
    if not light:
        return "colour_on_dark"
    background = chroma[luminance >= np.percentile(luminance, 80)]
    return "purple_on_purple" if float(background.mean()) >= _PURPLE_BACKGROUND_CHROMA else "purple_on_white"
