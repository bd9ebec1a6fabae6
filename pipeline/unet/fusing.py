"""Batch norms and activations fused into the convolution before them: a pass over memory less for each, in prediction.

In evaluation mode a batch norm is linear, so that one convolution with other weights does the work of the two. An
activation is left to oneDNN, which applies it to what it has just computed; that is for CPUs alone.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d, pad_same
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from pipeline.unet.depthwise import plain_class

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)

# What oneDNN calls an activation, and its constants.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
# Others may do more in their forward pass than convolve.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)


def fuse_layers(model: AnyNetwork, x: Tensor) -> AnyNetwork:
    """Return a copy of `model` to predict with, its batch norms and activations fused; arguments as of either."""
    return fuse_activations(fuse_batch_norms(model, x), x)


@torch.no_grad()
def fuse_batch_norms(model: AnyNetwork, x: Tensor) -> AnyNetwork:
    """Return a copy of `model`, in evaluation mode, whose batch norms right after a convolution are fused into it.

    What follows what is seen by running the copy on `x` (1, C, H, W) float32, of any size that it takes. That outputs
    agree is checked on `x`, to a ten-thousandth of the largest: a network where a convolution's output goes elsewhere
    too comes back as a plain copy.
    """
    plain = copy.deepcopy(model).eval()
    fused = copy.deepcopy(plain)
    for convolution, name in _find_pairs(fused, x, _is_norm):
        norm: Any = fused.get_submodule(name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        act = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        _put(fused, name, act)
    return fused if _agree(fused, plain, x) else plain


@torch.no_grad()
def fuse_activations(model: AnyNetwork, x: Tensor) -> AnyNetwork:
    """Return `model` with its convolutions left to oneDNN, each with the ReLU or ReLU6 right after it if there is one.

    The arguments, the copy that it returns, and what is checked are as for `fuse_batch_norms`. Gradients, and devices
    but CPUs, get the two one after the other.
    """
    plain = copy.deepcopy(model).eval()
    if not _can_fuse(torch.float32):
        return plain
    fused = copy.deepcopy(plain)
    after = dict(_find_pairs(fused, x, lambda module: type(module) in _ACTIVATIONS))
    for name, convolution in [*fused.named_modules()]:
        if not isinstance(convolution, nn.Conv2d) or plain_class(convolution) not in _CONVOLUTIONS:
            continue
        if isinstance(convolution.padding, str) or convolution.padding_mode != "zeros":
            continue
        activation: nn.Module = nn.Identity()
        if convolution in after:
            activation = fused.get_submodule(after[convolution])
            _put(fused, after[convolution], nn.Identity())
        _put(fused, name, ConvolutionWithActivation(convolution, activation))
    return fused if _agree(fused, plain, x) else plain


class ConvolutionWithActivation(nn.Module):
    """A convolution and the ReLU or ReLU6 after it, if any, in one pass over memory on a CPU.

    Its weights are not to change any more once it has run: what autocast would cast them to is kept. Depthwise ones run
    in bf16 too, of which only the backward pass is slow.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.convolution, self.activation = convolution, activation
        self._kept: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return what the activation makes of the convolution of `x` (B, C, H, W)."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.device.type != "cpu" or torch.is_grad_enabled() or not _can_fuse(dtype):
            activated: Tensor = self.activation(self.convolution(x))
            return activated
        conv = self.convolution
        kernel, stride, dilation, padding = [*conv.kernel_size], [*conv.stride], [*conv.dilation], [*conv.padding]
        if dtype not in self._kept:
            self._kept[dtype] = conv.weight.to(dtype), None if conv.bias is None else conv.bias.to(dtype)
        weight, bias = self._kept[dtype]
        if isinstance(conv, Conv2dSame):  # TensorFlow's padding, which differs from side to side
            x = pad_same(x, kernel, stride, dilation)
        name, constants = _ACTIVATIONS.get(type(self.activation), ("none", []))
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(dtype), weight, bias, padding, stride, dilation, conv.groups, name, constants, ""
        )
        return fused


@cache
def _can_fuse(dtype: torch.dtype) -> bool:
    """Return whether torch has oneDNN's fused convolution, for which it has no public name, and it runs in `dtype`."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    try:
        # On older CPUs, where torch's other convolutions imitate bf16, this one refuses it.
        torch.ops.mkldnn._convolution_pointwise(one, one, None, [0, 0], [1, 1], [1, 1], 1, "relu", [], "")
    except (RuntimeError, AttributeError):
        return False
    return True


def _agree(fused: nn.Module, plain: nn.Module, x: Tensor) -> bool:
    """Return whether two networks give the same for `x`, to a ten-thousandth of the largest value."""
    wanted = plain(x)
    return torch.allclose(fused(x), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one that has the name."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _is_norm(module: nn.Module) -> bool:
    is_norm = type(module) in (nn.BatchNorm2d, BatchNormAct2d)
    return is_norm and bool(getattr(module, "track_running_stats", False))


def _find_pairs(model: nn.Module, x: Tensor, follows: Callable[[nn.Module], bool]) -> list[tuple[nn.Conv2d, str]]:
    """Return convolutions, each with the name of the module that takes its output, where both are of one pair only.

    Whether something else takes the output too is not seen here; see `_agree`.
    """
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is held so that its id stays its own
    pairs: list[tuple[nn.Conv2d, str]] = []

    def keep_output(module: Any, _: Any, output: Tensor) -> None:
        outputs[id(output)] = module, output

    def keep_pair(name: str, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], name))

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(keep_output))
        elif follows(module):
            handles.append(module.register_forward_pre_hook(lambda _, inputs, n=name: keep_pair(n, inputs)))
    model(x)
    for handle in handles:
        handle.remove()
    return [pair for pair in pairs if sum(pair[0] is other or pair[1] == name for other, name in pairs) == 1]
