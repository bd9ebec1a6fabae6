"""Batch normalisation fused into the convolution before it: one pass over memory less for each, in prediction.

In evaluation mode both are linear, so that one convolution with other weights does the work of the two.
"""

import copy
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


@torch.no_grad()
def fuse_batch_norms(model: AnyNetwork, x: Tensor) -> AnyNetwork:
    """Return a copy of `model`, in evaluation mode, whose batch norms right after a convolution are fused into it.

    What follows what is seen by running the copy on `x` (1, C, H, W) float32, of any size that it takes. That outputs
    agree is checked on `x`, to a ten-thousandth of the largest: a network where a convolution's output goes elsewhere
    too comes back as a plain copy.
    """
    plain = copy.deepcopy(model).eval()
    fused = copy.deepcopy(plain)
    for convolution, name in _find_pairs(fused, x):
        norm: Any = fused.get_submodule(name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        act = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        parent, _, attribute = name.rpartition(".")
        setattr(fused.get_submodule(parent), attribute, act)
    wanted, reached = plain(x), fused(x)
    agree = torch.allclose(reached, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    return fused if agree else plain


def _find_pairs(model: nn.Module, x: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Return convolutions, each with the name of the batch norm that takes its output."""
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
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            handles.append(module.register_forward_pre_hook(lambda _, inputs, n=name: keep_pair(n, inputs)))
    model(x)
    for handle in handles:
        handle.remove()
    used_once = [pair for pair in pairs if sum(pair[0] is other or pair[1] == name for other, name in pairs) == 1]
    return [
        (conv, name) for conv, name in used_once if getattr(model.get_submodule(name), "track_running_stats", False)
    ]
