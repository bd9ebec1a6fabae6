"""The watershed of a few nuclei, which decoding asks for hundreds of times in an image."""

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation._watershed_cy import watershed_raveled


def flood(distance: NDArray[np.float32], seeds: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the label map (H, W) int32 that seeds grow to in the mask, 4-connected, where `distance` is highest first.

    It is `skimage.segmentation.watershed(-distance, seeds, mask=mask)`, without the checks and copies that take four
    fifths of its time where an image is as small as a few nuclei.

    Args:
        distance: (H, W).
        seeds: (H, W), 0 or an id, all in the mask.
        mask: (H, W).
    """
    height, width = mask.shape
    inside = slice(1, height + 1), slice(1, width + 1)
    framed = np.zeros((height + 2, width + 2), np.float64)
    is_open, labels = np.zeros(framed.shape, np.int8), np.zeros(framed.shape, np.int32)
    np.negative(distance, out=framed[inside])
    is_open[inside], labels[inside] = mask, seeds
    row = width + 2
    around, strides = np.array([-row, -1, 1, row]), np.array([row, 1])
    flat = labels.ravel()
    watershed_raveled(framed.ravel(), np.flatnonzero(flat), around, is_open.ravel(), strides, 0.0, flat, False)
    return labels[inside]
