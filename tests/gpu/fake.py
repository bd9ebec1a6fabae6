"""A training step on a CUDA device that is not there, as far as that goes.

Under FakeTensorMode a tensor has a device, a shape and no values: what asks for a value raises, and so does here what
is made on the host and sent, as either waits for a real device. Autograd's engine wants a real device: the step is
followed from cutting to the loss. What comes after it is followed on `meta` tensors, which have no values either.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from pipeline.folds.training import make_preparation
from pipeline.images.resident import cut_windows
from pipeline.params import Recipe
from pipeline.unet import training
from pipeline.unet.losses import build_loss
from pipeline.unet.model import build_model
from pipeline.unet.runtime import Runtime
from pipeline.unet.training import Trainer

# These make a tensor of what the host holds.
_FROM_HOST = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.asarray)
# These bring values to the host, or ask whether they are there.
_TO_HOST = (
    Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
    Tensor.nonzero, torch.nonzero,
)  # fmt: skip


class NothingCrosses(TorchFunctionMode):
    """Raises where something crosses between host and device; counts what does not."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if func in _FROM_HOST or func in _TO_HOST:
            raise AssertionError(f"{func.__name__}: crosses between host and device")
        result = func(*args, **(kwargs or {}))
        is_moved = func is Tensor.to and result.device.type != args[0].device.type
        if is_moved:
            raise AssertionError(f"to: crosses from {args[0].device} to {result.device}")
        return result


def follow_to_loss(recipe: Recipe) -> tuple[Tensor, int]:
    """Take a step on a fake CUDA device up to its loss; return that, a fake, and how many calls of torch it took.

    Raises:
        AssertionError: something crosses between host and device.
    """
    with FakeTensorMode(), torch.device("cuda"):
        model = build_model(recipe.unet, pretrained=False)
        loss = build_loss(recipe.loss)
        prepare = make_preparation(recipe, margin_px=0)
        pixels, ids = torch.zeros(2 * 300 * 400, 3, dtype=torch.uint8), torch.zeros(2 * 300 * 400, dtype=torch.int32)
        windows = torch.tensor([[0, 300, 400, 10, 20], [300 * 400, 300, 400, 0, 0]])
        with NothingCrosses() as mode:
            tiles, label_maps = cut_windows(pixels, ids, windows, recipe.train.tile_px)
            images, crop_px = tiles.permute(0, 3, 1, 2), recipe.train.crop_px
            inputs, targets, weights = prepare(images, label_maps, crop_px, None)  # type: ignore[arg-type]
            total, terms = loss(model(inputs), targets, weights)
        if any(tensor.device.type != "cuda" for tensor in (tiles, label_maps, inputs, targets, total, *terms.values())):
            raise AssertionError("a tensor left the device")
        return total, mode.calls


def follow_from_loss(recipe: Recipe) -> int:
    """Go on from the loss, on `meta` tensors, but for the optimiser's own step; return how many calls that took.

    Raises:
        AssertionError, RuntimeError: something asks for a value.
    """
    with torch.device("meta"), mock.patch.object(training, "AdamW", _plain_adamw):
        model = build_model(recipe.unet, pretrained=False)
        # A generator of no device cannot be had, and none is used behind the loss.
        with mock.patch.object(torch, "Generator"):
            trainer = Trainer(model, recipe.train, recipe.loss, Runtime(torch.device("meta"), "fp32", True))
        px = recipe.train.start_crop_px
        total = trainer.model(torch.zeros(2, 3, px, px)).square().mean()
        with NothingCrosses() as mode:
            norm = trainer._find_gradient(total)
            trainer.step_watch.note(0, 0.1, total, norm)
            trainer._average_weights()
        return mode.calls


def _plain_adamw(parameters: Any, *, fused: bool, **arguments: Any) -> torch.optim.AdamW:
    """Return AdamW without its fused step, which `meta` lacks."""
    return torch.optim.AdamW(parameters, **arguments)
