"""The U-Net of Ronneberger et al. 2015, "Convolutional Networks for Biomedical Image Segmentation" (arXiv:1505.04597).

In: an image batch (B, C, H, W). Out: logits per pixel, for the whole image with `same` padding, for its centre with
`valid`.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.params import VanillaParams
from pipeline.unet.blocks import ConvBlock, SizeRule, build_upsampling, concatenate_skip

# Pixels that one `ConvBlock` with valid padding takes from a length: two 3x3 convolutions, two pixels each.
_BLOCK_LOSS_PX = 4


class VanillaUNet(nn.Module):
    """A contracting path that halves the image, an expanding path that doubles it, skips between equal resolutions.

    Depth 5 and width 64 are the paper's: 64, 128, 256, 512 and 1024 channels, 31 million parameters. The departures
    from the paper are the course's batch norm (and so no bias) and, where asked for, `same` padding.

    Args:
        in_channels: channels of the image.
        out_channels: logits per pixel.
        params: depth, width, padding, upsampling and dropout.
    """

    def __init__(self, in_channels: int, out_channels: int, params: VanillaParams) -> None:
        super().__init__()
        self.sizes = size_rule(params)
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
            self.sizes.output_of(length)
        *levels, bottom = self.contracting
        skips = []
        for block in levels:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, kernel_size=2)
        x = self.dropout(bottom(x))
        for upsample, block, skip in zip(self.upsampling, self.expanding, reversed(skips), strict=True):
            x = block(concatenate_skip(skip, upsample(x)))
        return self.head(x)


def size_rule(params: VanillaParams) -> SizeRule:
    """Return the lengths that a `VanillaUNet` takes.

    Every pooling must find an even length. With `same` padding that means a multiple of 2^(depth-1). With `valid`
    padding lengths are followed from the bottom up: n at the bottom is 2 n + 4 one level higher, and so on. On the
    way back each level doubles what is lost and adds its own block: 572 -> 388 at depth 5, as in the paper's figure 1.
    """
    multiple = 2 ** (params.depth - 1)
    if params.padding == "same":
        return SizeRule(multiple)
    offset, loss = 0, _BLOCK_LOSS_PX
    for _ in range(params.depth - 1):
        offset = 2 * offset + _BLOCK_LOSS_PX
        loss = 2 * loss + 2 * _BLOCK_LOSS_PX  # the block on the way down and the block on the way up
    return SizeRule(multiple, offset % multiple, loss // 2)


def output_size(input_px: int, params: VanillaParams) -> int:
    """Return the length of the output for an input of `input_px` pixels, along one axis.

    Raises:
        InputError: the length does not fit; the message names the nearest that does.
    """
    return size_rule(params).output_of(input_px)


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
