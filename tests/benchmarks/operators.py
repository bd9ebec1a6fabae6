"""The choices of operators that comments in the code give as reasons, each timed against what it replaced."""

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from pipeline.compose import compose_params
from pipeline.unet.losses import Loss, build_loss
from pipeline.unet.runtime import start_runtime
from tests.benchmarks.harness import Report, Setting, Table, time_pair

Pair = tuple[Callable[[], Any], Callable[[], Any]]
BATCH, SIDE = 16, 192


def run(setting: Setting) -> Report:
    params = compose_params(["train=cpu"])
    start_runtime(params.runtime)
    loss = build_loss(params.loss)
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, SIDE, SIDE)
    ids = torch.randint(0, 300, (BATCH, SIDE, SIDE), dtype=torch.int32)
    gamma = torch.rand(BATCH, 1, 1, 1)
    pairs: dict[str, tuple[str, Pair]] = {
        "gamma by log2 and exp2, against pow": (
            "images/effects.py",
            (lambda: images.log2().mul_(gamma).exp2_(), lambda: images.pow(gamma)),
        ),
        "foreground by cutting ids at 1, against comparing": (
            "nuclei/targets.py",
            (lambda: ids.clamp(max=1).float(), lambda: (ids > 0).float()),
        ),
        "loss in one memory layout, against two": (
            "unet/losses.py",
            (lambda: loss_of(loss, True), lambda: loss_of(loss, False)),
        ),
        "bf16 bilinear upsampling in channels_last, against NCHW": (
            "unet/runtime.py",
            (lambda: upsample(torch.channels_last), lambda: upsample(torch.contiguous_format)),
        ),
    }
    for channels, side, kernel, stride in [(240, 32, 5, 1), (144, 64, 5, 2), (240, 32, 3, 2), (144, 64, 3, 1)]:
        ours, theirs = (depthwise(channels, side, kernel, stride, dtype) for dtype in (torch.float32, torch.bfloat16))
        size = f"depthwise {kernel} x {kernel}, stride {stride}, {channels} channels of {side} px"
        name = f"{size}, in float32, against bf16"
        pairs[name] = ("unet/depthwise.py", (ours, theirs))
    rows = []
    for name, (file, (ours, theirs)) in pairs.items():
        timing = time_pair(ours, theirs, 3 * setting.runs, 2)
        low, high = min(timing.ratios), max(timing.ratios)
        rows.append([name, f"pipeline/{file}", f"{timing.ratio:.2g}x ({low:.2g} .. {high:.2g})"])
    note = f"{BATCH} images of {SIDE} px; forward and backward passes of the loss and of convolutions."
    return Report(tables=[Table("Choices of operators", ["what", "where", "the other over ours"], rows, note)])


def loss_of(loss: Loss, one_layout: bool) -> None:
    """Take the loss and its gradient of channels_last logits, with targets in the same layout or in the other."""
    logits = torch.randn(BATCH, 3, SIDE, SIDE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    logits, targets = logits.requires_grad_(), torch.rand(BATCH, 3, SIDE, SIDE)
    with contextlib.nullcontext() if one_layout else mock.patch.object(torch.Tensor, "contiguous", lambda x: x):
        loss(logits, targets, None)[0].backward()


def upsample(layout: torch.memory_format) -> torch.Tensor:
    x = torch.zeros(BATCH, 32, SIDE // 2, SIDE // 2, dtype=torch.bfloat16).to(memory_format=layout)
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def depthwise(channels: int, side: int, kernel: int, stride: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return the forward and backward pass from and to bf16 of a depthwise convolution that computes in `dtype`."""
    x = torch.randn(BATCH, channels, side, side, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x, weight = x.requires_grad_(), torch.randn(channels, 1, kernel, kernel, requires_grad=True)

    def work() -> None:
        y = F.conv2d(x.to(dtype), weight.to(dtype), stride=stride, padding=kernel // 2, groups=channels)
        y.to(torch.bfloat16).backward(torch.ones_like(y, dtype=torch.bfloat16))

    return work
