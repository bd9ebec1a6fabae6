"""A network as a table: what happens to a tile, stage by stage, and what each stage costs.

In: a network and the side of a tile. Out: a row per stage with shapes, parameters and multiply-accumulates (MACs),
found by watching one tile go through. The network says which of its modules are which stage, in its `stages`.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.unet.model import IN_CHANNELS, NormalizedUNet
from pipeline.unet.network import Network

Shape = tuple[int, int, int]  # channels, height, width


@dataclass
class Stage:
    """A stage of a network.

    Attributes:
        name: `encoder 1` (from the tile down), `upsampling 1`, `decoder 1` (from the bottom up), `head`.
        reads: shape of what its first layer reads: of a decoder, the skip and what comes from below, concatenated.
        gives: shape of what its last layer gives.
        parameters: weights and biases.
        macs: multiply-accumulates of its convolutions, for one tile.
    """

    name: str
    reads: Shape
    gives: Shape
    parameters: int = 0
    macs: int = 0
    seen: set[int] = field(default_factory=set, repr=False)  # ids of parameters, which are counted once


def describe_network(model: NormalizedUNet, tile_px: int) -> list[Stage]:
    """Return the stages that a tile of `tile_px` goes through, in their order. The network comes back as it was.

    Raises:
        InputError: the network cannot take that size; the message names the nearest that it can.
    """
    model.lengths.output_of(tile_px)
    stages: list[Stage] = []
    was_training = model.training
    with _watch_layers(model.net, stages, tile_px), torch.no_grad():
        device = next(model.parameters()).device
        model.eval()(torch.zeros(1, IN_CHANNELS, tile_px, tile_px, device=device))
    model.train(was_training)
    return stages


@contextmanager
def _watch_layers(net: Network, stages: list[Stage], tile_px: int) -> Iterator[None]:
    """Enter every layer of `net` that is run into `stages`."""
    # A batch norm of timm's has parameters of its own and children too.
    own = {layer: bool(list(layer.parameters(recurse=False))) for layer in net.modules()}
    names = {layer: name for name, layer in net.named_modules() if own[layer] or not list(layer.children())}

    def enter(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, reads, gives = _name_stage(names[layer], net.stages), _shape(inputs[0]), _shape(output)
        if name is None or reads is None or gives is None:
            return
        macs = _count_macs(layer, reads, gives)
        if name == "encoder":  # of a library: a stage is a resolution, wherever its layers are kept
            is_gate = gives[1:] == (1, 1) and bool(stages)  # squeeze and excitation, whose gate has no resolution
            name = stages[-1].name if is_gate else f"encoder {round(math.log2(tile_px / gives[1])) + 1}"
            gives = stages[-1].gives if is_gate else gives
        stage = next((one for one in stages if one.name == name), None)
        if stage is None:
            stages.append(stage := Stage(name, reads, gives))
        stage.gives = gives
        stage.macs += macs
        for parameter in layer.parameters(recurse=False):
            if id(parameter) not in stage.seen:
                stage.seen.add(id(parameter))
                stage.parameters += parameter.numel()

    def correct(_encoder: nn.Module, _inputs: tuple[Any, ...], maps: Any) -> None:
        """Put what a library's encoder hands to the decoder in place of its last layer at that resolution."""
        for gives in filter(None, map(_shape, maps)):
            for stage in stages:
                if stage.gives[1:] == gives[1:]:
                    stage.gives = gives

    handles = [layer.register_forward_hook(enter) for layer in names]
    handles += [module.register_forward_hook(correct) for name, module in net.named_modules() if name == "encoder"]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shape(value: Any) -> Shape | None:
    return (value.shape[1], value.shape[2], value.shape[3]) if isinstance(value, Tensor) and value.ndim == 4 else None


def _name_stage(name: str, stages: tuple[tuple[str, str], ...]) -> str | None:
    """Return the name of the stage that the module `name` belongs to, counted from 1; None where it belongs to none."""
    for pattern, stage in stages:
        if match := re.match(pattern, name):
            return stage.format(int(match[1]) + 1) if "{}" in stage else stage
    return None


def _count_macs(layer: nn.Module, reads: Shape, gives: Shape) -> int:
    """Return the multiply-accumulates of a convolution: kernel and channels once per output (transposed: input) pixel.

    Interpolation, batch norm and activation have none.
    """
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return 0
    height, width = reads[1:] if isinstance(layer, nn.ConvTranspose2d) else gives[1:]
    return layer.weight.numel() * height * width


def format_stages(stages: list[Stage]) -> str:
    """Return the stages as a table of text, with a line of sums."""
    rows: list[tuple[str, ...]] = [("stage", "reads", "gives", "parameters", "MACs")]
    for stage in stages:
        shapes = (" x ".join(map(str, shape)) for shape in (stage.reads, stage.gives))
        rows.append((stage.name, *shapes, f"{stage.parameters:,}", _scale(stage.macs)))
    total = (f"{sum(stage.parameters for stage in stages):,}", _scale(sum(stage.macs for stage in stages)))
    rows.append(("all", "", "", *total))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _scale(macs: int) -> str:
    return f"{macs / 1e9:.2f} G" if macs >= 1e9 else f"{macs / 1e6:.2f} M"
