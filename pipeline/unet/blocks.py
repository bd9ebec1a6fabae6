"""The bricks of a U-Net, and the rule for the lengths it takes.

In: channel counts and feature maps. Out: the double convolution, the four ways to upsample, the skip connection.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import InputError

Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "nearest", "bilinear", "bicubic"]


class ConvBlock(nn.Sequential):
    """Two rounds of 3x3 convolution, batch norm and ReLU.

    The convolution has no bias, since batch norm subtracts the mean and adds a bias of its own. With `valid` padding
    each convolution takes a ring of one pixel away, so the block's output is 4 pixels smaller along each axis.

    Source: Ronneberger et al. 2015, section 2 (arXiv:1505.04597); batch norm: Ioffe and Szegedy 2015.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: Padding) -> None:
        ring = 1 if padding == "same" else 0
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=ring, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=ring, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def build_upsampling(kind: Upsampling, in_channels: int, out_channels: int) -> nn.Module:
    """Return a module that doubles height and width and takes `in_channels` to `out_channels`.

    `transposed` learns both at once: a 2x2 kernel with stride 2, the paper's "up-convolution". The others interpolate
    by a fixed rule, which cannot change the number of channels, so a 1x1 convolution follows that does.
    """
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
    corners = None if kind == "nearest" else False  # pixels are areas: corner centres do not stay in place
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=kind, align_corners=corners),
        nn.Conv2d(in_channels, out_channels, kernel_size=1),
    )


def center_crop(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the middle of `maps` (..., H, W) with height and width `size`, which must not be larger."""
    (height, width), (rows, columns) = maps.shape[-2:], size
    top, left = (height - rows) // 2, (width - columns) // 2
    return maps[..., top : top + rows, left : left + columns]


def concatenate_skip(skip: Tensor, x: Tensor) -> Tensor:
    """Return the encoder's `skip` (B, C, H, W), cropped to its centre, and `x` (B, D, h, w) as (B, C + D, h, w)."""
    return torch.cat([center_crop(skip, x.shape[-2:]), x], dim=1)


@dataclass(frozen=True)
class LengthRule:
    """Which heights and widths a network takes, and how much smaller its output is.

    A length is accepted where `length % multiple == remainder` and the output has at least one pixel. The output is
    the input's centre: `margin_px` is lost on each side.
    """

    multiple: int
    remainder: int = 0
    margin_px: int = 0

    def input_for(self, output_px: int) -> int:
        """Return the smallest accepted length whose output has at least `output_px` (1 or more) pixels."""
        wanted = output_px + 2 * self.margin_px
        return wanted + (self.remainder - wanted) % self.multiple

    def output_of(self, input_px: int) -> int:
        """Return the output's length for an input of `input_px` pixels.

        Raises:
            InputError: the network cannot take this length; the message names the nearest that it can.
        """
        if input_px % self.multiple != self.remainder or input_px <= 2 * self.margin_px:
            nearest = self._nearest(input_px)
            raise InputError(
                f"the network cannot take an image {input_px} px long: lengths are {self.remainder} more than a "
                f"multiple of {self.multiple}; the nearest is {nearest}, which gives {nearest - 2 * self.margin_px}"
            )
        return input_px - 2 * self.margin_px

    def _nearest(self, input_px: int) -> int:
        above = self.input_for(max(1, input_px - 2 * self.margin_px))
        below = above - self.multiple
        return below if below > 2 * self.margin_px and input_px - below <= above - input_px else above
