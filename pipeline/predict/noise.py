"""Whether there is anything in an image at all. In: an image. Out: yes or no.

Networks were shown images with nuclei, and in nothing but noise they find one now and then.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.contrast import split_rows

_BLOCK_PX = 16  # side of the blocks within which noise is looked at
_QUIET_PERCENT, _LEAST_BLOCKS = 5, 20  # the block that shows it, and of how many
_FEW_PX = 5  # of each strip, at both ends of the values, count for nothing
# The range of smoothed noise is 8 to 10 times its deviation; in the images of the competition it is 44 times or more.
_MOST_SPAN = 14


def is_noise(image: NDArray[np.uint8]) -> bool:
    """Return whether nothing in an image (H, W, 3) uint8 stands out of its noise, once smoothed; strip by strip."""
    lowest, highest, deviations = [], [], []
    for rows in split_rows(image):
        grey = cv2.medianBlur(np.ascontiguousarray(image[rows]), 3).mean(axis=2, dtype=np.float32)
        few = min(_FEW_PX, grey.size - 1)
        values = np.partition(grey.ravel(), (few, grey.size - 1 - few))
        lowest.append(values[few])
        highest.append(values[grey.size - 1 - few])
        height, width = (side // _BLOCK_PX for side in grey.shape)
        blocks = grey[: height * _BLOCK_PX, : width * _BLOCK_PX].reshape(height, _BLOCK_PX, width, _BLOCK_PX)
        deviations.append(blocks.std(axis=(1, 3)).ravel())
    within = np.concatenate(deviations)
    noisy = within[within > 0]  # not of one value, as a border is
    if len(noisy) < _LEAST_BLOCKS:
        return False
    return bool(max(highest) - min(lowest) < _MOST_SPAN * np.percentile(noisy, _QUIET_PERCENT))
