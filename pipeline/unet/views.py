"""The eight symmetries of the square, each with its inverse: a batch goes in, the batch turned or mirrored comes out.

A microscope image has no up: the network may look at it eight ways, and its answers, turned back, are averaged.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """Mirror left and right (or not), then turn by quarters, counterclockwise.

    Source: the dihedral group D4; each element is r^k or r^k s with r a quarter turn and s a mirror.
    """

    name: str
    mirrored: bool
    quarter_turns: int

    def apply(self, x: Tensor) -> Tensor:
        """Return the view of `x` (..., H, W); an odd number of quarter turns swaps height and width."""
        x = x.flip(-1) if self.mirrored else x
        return torch.rot90(x, self.quarter_turns, dims=(-2, -1)) if self.quarter_turns else x

    def invert(self, x: Tensor) -> Tensor:
        """Return `x` (..., H, W) turned back: `invert(apply(x))` is `x`."""
        x = torch.rot90(x, -self.quarter_turns, dims=(-2, -1)) if self.quarter_turns else x
        return x.flip(-1) if self.mirrored else x


IDENTITY = View("identity", mirrored=False, quarter_turns=0)
HALF_TURN = View("half turn", mirrored=False, quarter_turns=2)
LEFT_RIGHT = View("left-right", mirrored=True, quarter_turns=0)
UP_DOWN = View("up-down", mirrored=True, quarter_turns=2)

# The symmetries of a rectangle: they keep height and width.
FLIP_VIEWS = (IDENTITY, LEFT_RIGHT, UP_DOWN, HALF_TURN)

D4_VIEWS = (
    *FLIP_VIEWS,
    View("quarter turn left", mirrored=False, quarter_turns=1),
    View("quarter turn right", mirrored=False, quarter_turns=3),
    View("anti-transpose", mirrored=True, quarter_turns=3),
    View("transpose", mirrored=True, quarter_turns=1),
)


def views_of(kind: Literal["identity", "flips", "d4"]) -> tuple[View, ...]:
    """Return the views of params.yaml's `predict.views`: one, the rectangle's four or the square's eight."""
    return {"identity": (IDENTITY,), "flips": FLIP_VIEWS, "d4": D4_VIEWS}[kind]
