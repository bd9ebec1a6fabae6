"""From parameters to a network: images in [0, 1] go in, logits of foreground, boundary and distance come out.

The normalisation of the encoder's pretraining is part of the network, so that nobody else needs to know it.
"""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.params import SmpParams, VanillaParams
from pipeline.unet.blocks import SizeRule
from pipeline.unet.depthwise import run_slow_depthwise_in_float32
from pipeline.unet.pretrained import find_normalisation, load_encoder_weights
from pipeline.unet.vanilla import VanillaUNet

# An image's channels: RGB.
IN_CHANNELS = 3
# A prediction's channels: foreground, boundary, distance.
OUT_CHANNELS = 3


class NormalizedUNet(nn.Module):
    """A U-Net that takes images in [0, 1] and normalises them itself.

    Args:
        net: the network proper, which takes normalised images.
        sizes: the lengths that `net` takes.
        mean_std: per channel, of values in [0, 1].
        encoder_weights: where the encoder's weights come from: `source`, `file`, `sha256`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        sizes: SizeRule,
        mean_std: tuple[tuple[float, ...], tuple[float, ...]],
        encoder_weights: dict[str, str],
    ) -> None:
        super().__init__()
        self.net = net
        self.sizes = sizes
        self.encoder_weights = encoder_weights
        for name, values in zip(("mean", "std"), mean_std, strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))

    @property
    def margin_px(self) -> int:
        """The pixels on each side of an image that the output does not have."""
        return self.sizes.margin_px

    @property
    def multiple(self) -> int:
        """The step between the lengths that the network takes."""
        return self.sizes.multiple

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 3, h, w) for `images` (B, 3, H, W), RGB in [0, 1].

        Channels of the logits: foreground, boundary, distance. h = H - 2 margin_px, w alike.
        """
        return self.net((images - self.mean) / self.std)


def build_model(params: SmpParams | VanillaParams, pretrained: bool = True) -> NormalizedUNet:
    """Return the network that `params` describe, on the CPU and in training mode.

    Args:
        params: the section `unet`.
        pretrained: fill the encoder from `params.weights`; False where all weights are loaded afterwards.

    Raises:
        InputError: the encoder is unknown or cannot be built so, or its weights cannot be had.
    """
    if isinstance(params, VanillaParams):
        vanilla = VanillaUNet(IN_CHANNELS, OUT_CHANNELS, params)
        return NormalizedUNet(vanilla, vanilla.sizes, find_normalisation("none"), _no_weights())
    net = _build_smp(params)
    run_slow_depthwise_in_float32(net)
    weights = load_encoder_weights(net.encoder, params) if pretrained else _no_weights()
    # Each of the encoder's stages halves the image. SMP would take other sizes too, but then a pixel of a skip is
    # no longer the pixel of the map that it is put beside.
    sizes = SizeRule(2 ** len(params.decoder_channels))
    return NormalizedUNet(net, sizes, find_normalisation(params.encoder), weights)


def _build_smp(params: SmpParams) -> smp.Unet:
    try:
        return smp.Unet(
            params.encoder,
            encoder_depth=len(params.decoder_channels),
            encoder_weights=None,  # random, and no download: `load_encoder_weights` fills them
            decoder_channels=params.decoder_channels,
            decoder_interpolation=params.upsampling,
            in_channels=IN_CHANNELS,
            classes=OUT_CHANNELS,
        )
    except (KeyError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).strip("'\"")[:200]
        raise InputError(
            f"unet.encoder: {params.encoder} with {len(params.decoder_channels)} decoder_channels cannot be built "
            f"({reason}); `timm.list_models()` lists the names to put after `tu-`"
        ) from error


def _no_weights() -> dict[str, str]:
    return {"source": "none", "file": "", "sha256": ""}
