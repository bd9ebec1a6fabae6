"""What goes into prediction and what comes out of it, and all that those who make either need to know of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


def average(parts: Sequence[NDArray[np.uint8]], weights: Sequence[int]) -> NDArray[np.uint8]:
    """Return the weighted mean of arrays of one shape, uint8, rounded; of one, itself.

    The sum is of whole numbers, and exact, so that no order of the parts matters.
    """
    if len(parts) == 1:
        return parts[0]
    total = np.zeros(parts[0].shape, np.float32)
    for part, weight in zip(parts, weights, strict=True):
        total += part if weight == 1 else part * np.float32(weight)
    total /= sum(weights)
    return total.round().astype(np.uint8)


class Windows(Protocol):
    """An image (H, W, 3) uint8 of which windows are looked at: an array, or what makes each as it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""

    def __getitem__(self, window: Any, /) -> Any:
        """Return a window (h, w, 3) uint8; `window` indexes rows and columns as an array is indexed."""


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
