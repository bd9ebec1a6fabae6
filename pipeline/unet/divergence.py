"""Steps that diverge: noted on the device, looked at when it is waited for anyway.

In: each step's learning rate, loss and gradient norm. Out: the first step whose loss or gradient is no number.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Divergence(NamedTuple):
    """A step that diverged, its learning rate, and its loss."""

    step: int
    rate: float
    loss: float


class StepWatch:
    """Notes steps without waiting for the device, until it is asked about them."""

    def __init__(self) -> None:
        self._unchecked: list[tuple[int, float, Tensor]] = []  # step, rate, and loss and gradient norm on the device

    def note(self, step: int, rate: float, loss: Tensor, norm: Tensor) -> None:
        """Keep a step's learning rate, and its loss () and gradient norm (), which stay on the device."""
        self._unchecked.append((step, rate, torch.stack([loss.detach().float(), norm.float()])))

    def find_divergence(self) -> Divergence | None:
        """Return the first step since the last call that diverged, or None. One transfer from the device.

        A step diverges where its loss or its gradient is infinite or not a number.
        """
        unchecked, self._unchecked = self._unchecked, []
        values = torch.stack([value for _, _, value in unchecked]).cpu() if unchecked else torch.zeros(0, 2)
        wrong = (~values.isfinite().all(dim=1)).nonzero()
        if len(wrong) == 0:
            return None
        first = int(wrong[0])
        return Divergence(unchecked[first][0], unchecked[first][1], float(values[first, 0]))
