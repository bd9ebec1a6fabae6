"""Images and label maps in fewer bytes, as a prepared split has them: nine of ten pixels of stage1_train are grey.

In: an image `(H, W, 3)` uint8 RGB and a label map `(H, W)` uint16. Out: `(H, W, 1)` where the channels are equal, and
ids in uint8 where all of them fit; and back. Whoever opens a split sees them whole.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def compact_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) uint8 as (H, W, 1) where it is grey, else as it is."""
    red, green, blue = cv2.split(image)
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    return np.asarray(red, np.uint8)[..., None] if is_grey else image


def expand_image(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what `compact_image` made of an image as (H, W, 3) uint8: itself, or an array that is read-only."""
    return stored if stored.shape[2] == 3 else _freeze(np.asarray(cv2.cvtColor(stored, cv2.COLOR_GRAY2RGB), np.uint8))


def compact_labels(label_map: NDArray[np.uint16]) -> NDArray[Any]:
    """Return a label map (H, W) uint16 in uint8 where no id is above 255, else as it is."""
    return label_map.astype(np.uint8) if label_map.max() <= np.iinfo(np.uint8).max else label_map


def expand_labels(stored: NDArray[Any]) -> NDArray[np.uint16]:
    """Return what `compact_labels` made of a label map as (H, W) uint16: itself, or an array that is read-only."""
    return stored if stored.dtype == np.uint16 else _freeze(stored.astype(np.uint16))


def _freeze(array: NDArray[Any]) -> NDArray[Any]:
    """Make an array read-only, as those are that are mapped from a pack, and return it."""
    array.flags.writeable = False
    return array
