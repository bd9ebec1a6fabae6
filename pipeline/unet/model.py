"""From parameters to a network: images in [0, 1] go in, logits of foreground, boundary and distance come out.

The normalisation that the network expects is part of what is built here, so that nobody else needs to know it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.options import Section, check_section
from pipeline.params import NetworkParams
from pipeline.unet.blocks import LengthRule
from pipeline.unet.network import NO_WEIGHTS, Network
from pipeline.unet.smp import SmpParams, SmpUNet
from pipeline.unet.vanilla import VanillaParams, VanillaUNet
from pipeline.unet.weights import read_weights

# An image's channels: RGB.
IN_CHANNELS = 3
# A prediction's channels: foreground, boundary, distance.
OUT_CHANNELS = 3


class Entry(NamedTuple):
    """A network that `unet.name` can ask for: the section of its own parameters, and what builds it of them.

    `build` takes the channels of the image, the logits per pixel, and the section.
    """

    params: type[Section]
    build: Callable[[int, int, Any], Network]


NETWORKS = {
    "smp": Entry(SmpParams, SmpUNet),
    "vanilla": Entry(VanillaParams, VanillaUNet),
}


class NormalizedUNet(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself.

    Args:
        net: the network proper, which takes normalised images.
        encoder_weights: where the encoder's weights come from: `source`, `file`, `sha256`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Network, encoder_weights: dict[str, str]) -> None:
        super().__init__()
        self.net = net
        self.encoder_weights = encoder_weights
        for name, values in zip(("mean", "std"), net.mean_std, strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))

    @property
    def lengths(self) -> LengthRule:
        """The heights and widths that the network takes."""
        return self.net.lengths

    @property
    def margin_px(self) -> int:
        """The pixels on each side of an image that the output does not have."""
        return self.net.lengths.margin_px

    @property
    def title(self) -> str:
        """What the network is, in a few words."""
        return self.net.title

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 3, h, w) for `images` (B, 3, H, W), RGB in [0, 1].

        Channels of the logits: foreground, boundary, distance. h = H - 2 margin_px, w alike.
        """
        return self.net(self._normalize(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps (B, C, h, w) of `images` (B, 3, H, W), RGB in [0, 1], the deepest one last."""
        return self.net.encode(self._normalize(images))

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def build_model(params: NetworkParams, pretrained: bool = True) -> NormalizedUNet:
    """Return the network that `params` describe, on the CPU and in training mode.

    Args:
        params: the section `unet`.
        pretrained: fill the encoder from where `params` say; False where all weights are loaded afterwards.

    Raises:
        InputError: the network or one of its keys is unknown, it cannot be built so, or its encoder's weights cannot
            be had.
    """
    if params.name not in NETWORKS:
        raise InputError(f"params.yaml: unet.name: no network {params.name!r}; choose one of {', '.join(NETWORKS)}")
    entry = NETWORKS[params.name]
    net = entry.build(IN_CHANNELS, OUT_CHANNELS, check_section(entry.params, params.model_extra or {}, "unet"))
    return NormalizedUNet(net, net.load_pretrained() if pretrained else dict(NO_WEIGHTS))


def load_model(path: Path, params: NetworkParams) -> tuple[NormalizedUNet, dict[str, str]]:
    """Return the network of `path` in `eval` mode on the CPU, and the metadata saved with it.

    Raises:
        InputError: the file is missing or damaged, or holds another network than `params` describe.
    """
    tensors, metadata = read_weights(path)
    model = build_model(params, pretrained=False)
    state = model.state_dict()
    odd = sorted(name for name in state.keys() | tensors.keys() if _shape(state, name) != _shape(tensors, name))
    if odd:
        raise InputError(
            f"{path}: not the network that `unet` in params.yaml describes: {len(odd)} tensors differ, such as "
            f"{odd[0]} ({_shape(tensors, odd[0])} there, {_shape(state, odd[0])} here); train the fold again, or "
            "restore the params.yaml it was trained with"
        )
    model.load_state_dict(tensors)
    return model.eval(), metadata


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "none"
