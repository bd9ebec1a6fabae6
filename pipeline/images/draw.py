"""What effects of augmentation on the device share: the numbers that are drawn for a batch, and constants of colour.

In: a batch's size, its device, and a generator there. Out: tensors on that device; nothing waits for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Weights of red, green and blue in luminance: ITU-R BT.601.
LUMINANCE = (0.299, 0.587, 0.114)
# The smallest step of 8 bits, halved: 0 ** gamma has no finite gradient and log(0) no value.
DARKEST = 1 / 510


class Draw(NamedTuple):
    """The source of randomness of one batch: its size, its device, and the generator there."""

    batch: int
    device: torch.device
    generator: torch.Generator | None

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return (B, *shape) float32, uniform in [low, high)."""
        values = torch.rand(self.batch, *shape, device=self.device, generator=self.generator)
        return low + (high - low) * values

    def normal(self, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal."""
        return torch.randn(self.batch, *shape, device=self.device, generator=self.generator)

    def sign(self) -> Tensor:
        """Return (B,) float32, 1 or -1, equally likely."""
        return self.chance(0.5) * 2 - 1

    def chance(self, probability: float) -> Tensor:
        """Return (B,) float32, 1 with the given probability, else 0."""
        return (self.uniform(0, 1) < probability).float()


def fill(values: Sequence[float], device: torch.device) -> Tensor:
    """Return constants as (n,) float32, filled on the device: to send them there would wait for it."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])
