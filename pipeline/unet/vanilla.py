"""The U-Net of Ronneberger et al. 2015, "Convolutional Networks for Biomedical Image Segmentation" (arXiv:1505.04597).

In: an image batch (B, C, H, W). Out: logits per pixel, for the whole image with `same` padding, for its centre with
`valid`.
"""

import math
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.options import Natural, Section
from pipeline.unet.blocks import ConvBlock, LengthRule, Padding, Upsampling, build_upsampling, concatenate_skip
from pipeline.unet.network import Network

# Pixels that one `ConvBlock` with valid padding takes from a length: two 3x3 convolutions, two pixels each.
_BLOCK_LOSS_PX = 4


class VanillaParams(Section):
    """What the section `unet` says beside `name: vanilla`."""

    depth: Annotated[int, Field(ge=2, le=7)]  # resolutions; the paper's is 5
    width: Natural  # channels at full resolution; the paper's is 64
    padding: Padding
    upsampling: Upsampling
    dropout: Annotated[float, Field(ge=0, lt=1)]  # at the end of the contracting path


class VanillaUNet(Network):
    """A contracting path that halves the image, an expanding path that doubles it, skips between equal resolutions.

    Depth 5 and width 64 are the paper's: 64, 128, 256, 512 and 1024 channels, 31 million parameters. The departures
    from the paper are batch norm (and so no bias) and, where asked for, `same` padding.

    Args:
        in_channels: channels of the image.
        out_channels: logits per pixel.
        params: depth, width, padding, upsampling and dropout.
    """

    stages = (
        (r"contracting\.(\d+)\.", "encoder {}"),
        (r"dropout", "dropout"),
        (r"upsampling\.(\d+)\b", "upsampling {}"),
        (r"expanding\.(\d+)\.", "decoder {}"),
        (r"head\b", "head"),
    )

    def __init__(self, in_channels: int, out_channels: int, params: VanillaParams) -> None:
        super().__init__()
        self.lengths = length_rule(params)
        self.title = f"vanilla U-Net, width {params.width}, {params.padding} padding"
        widths = [params.width * 2**level for level in range(params.depth)]  # each halving doubles the channels
        inputs = [in_channels, *widths[:-1]]
        self.contracting = nn.ModuleList(
            ConvBlock(before, after, params.padding) for before, after in zip(inputs, widths, strict=True)
        )
        self.dropout = nn.Dropout(params.dropout)
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.upsampling = nn.ModuleList(build_upsampling(params.upsampling, deep, wide) for deep, wide in upwards)
        self.expanding = nn.ModuleList(ConvBlock(2 * wide, wide, params.padding) for _, wide in upwards)
        self.head = nn.Conv2d(params.width, out_channels, kernel_size=1)
        self.apply(initialize_he)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, out_channels, h, w) of `x` (B, in_channels, H, W).

        Raises:
            InputError: H or W does not fit; the message names the nearest length that does.
        """
        for length in x.shape[-2:]:
            self.lengths.output_of(length)
        *skips, x = self.encode(x)
        x = self.dropout(x)
        for upsample, block, skip in zip(self.upsampling, self.expanding, reversed(skips), strict=True):
            x = block(concatenate_skip(skip, upsample(x)))
        return self.head(x)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the map (B, C, h, w) of each resolution of `x` (B, in_channels, H, W), the finest first."""
        maps: list[Tensor] = []
        for block in self.contracting:
            maps.append(block(F.max_pool2d(maps[-1], kernel_size=2) if maps else x))
        return maps


def length_rule(params: VanillaParams) -> LengthRule:
    """Return the lengths that a `VanillaUNet` takes.

    Every pooling must find an even length. With `same` padding that means a multiple of 2^(depth-1). With `valid`
    padding lengths are followed from the bottom up: n at the bottom is 2 n + 4 one level higher, and so on. On the
    way back each level doubles what is lost and adds its own block: 572 -> 388 at depth 5, as in the paper's figure 1.
    """
    multiple = 2 ** (params.depth - 1)
    if params.padding == "same":
        return LengthRule(multiple)
    offset, loss = 0, _BLOCK_LOSS_PX
    for _ in range(params.depth - 1):
        offset = 2 * offset + _BLOCK_LOSS_PX
        loss = 2 * loss + 2 * _BLOCK_LOSS_PX  # the block on the way down and the block on the way up
    return LengthRule(multiple, offset % multiple, loss // 2)


def initialize_he(module: nn.Module) -> None:
    """Draw a convolution's weights from a normal distribution of standard deviation sqrt(2 / N), its bias 0.

    N is the number of inputs of one output neuron. In a 2x2 transposed convolution with stride 2 the patches do not
    overlap, so each output sees one pixel: N is its input channels.

    Source: He et al. 2015 (arXiv:1502.01852), as in section 3 of the U-Net paper.
    """
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return
    transposed = isinstance(module, nn.ConvTranspose2d)
    inputs = module.in_channels if transposed else module.weight[0].numel()
    nn.init.normal_(module.weight, std=math.sqrt(2 / inputs))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
