"""Depthwise convolutions that bf16 makes slower to train on a CPU, run in float32 there.

oneDNN has no fast bf16 backward pass for depthwise convolutions with a stride or a kernel above 3 x 3, but a good one
for 3 x 3 and stride 1: `make bench only=operators` times them, and `only=profile` a training step without this.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _Float32OnCpu:
    """Mixed into a convolution's class: on a CPU it computes in float32, whatever autocast says."""

    def forward(self, x: Tensor) -> Tensor:
        convolve: Any = super()
        if x.device.type != "cpu":
            return convolve.forward(x)
        with torch.autocast("cpu", enabled=False):
            return convolve.forward(x.float()).to(x.dtype)


def _float32_class(base: type[nn.Conv2d]) -> Any:
    """Return the subclass of a convolution's class (timm has its own for TensorFlow's padding) with the mixin."""
    return type(f"Float32{base.__name__}", (_Float32OnCpu, base), {})


def plain_class(convolution: nn.Conv2d) -> type[nn.Module]:
    """Return the class of a convolution, or the one that it had before `run_slow_depthwise_in_float32`."""
    own = type(convolution)
    return own.__bases__[1] if issubclass(own, _Float32OnCpu) else own


def run_slow_depthwise_in_float32(model: nn.Module) -> None:
    """Change the model's depthwise convolutions with a stride or a large kernel in place; weights keep their names."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            is_slow = max(module.kernel_size) > 3 or max(module.stride) > 1
            module.__class__ = _float32_class(type(module)) if is_slow else type(module)
