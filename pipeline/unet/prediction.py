"""What the networks say of one image: made by `predict`, and all that what comes after it needs to know of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Prediction(NamedTuple):
    """What the networks say of one image.

    Attributes:
        image_id: of the image.
        probabilities: (S, H, W, 3) uint8 (value / 255), one for each of `predict.scales`.
        zoom: of the image, before `predict.scales`.
    """

    image_id: str
    probabilities: NDArray[np.uint8]
    zoom: float
