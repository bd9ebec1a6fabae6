"""The two training loops that are compared, on any device: the pipeline's own, and that of SMP's own example.

The peer is the loop of segmentation_models.pytorch's examples: a DataLoader whose workers run albumentations, NCHW, and
the loss read at every step. Network, tile size, targets and loss are the same on both sides.
"""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.folds.training import start_training
from pipeline.images.augment import crop_batch
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, TrainingImages
from pipeline.images.resident import ResidentImages
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.targets import encode_targets
from pipeline.parallel import start_worker
from pipeline.params import Params
from pipeline.unet.losses import build_loss
from pipeline.unet.model import build_model
from pipeline.unet.runtime import Runtime
from pipeline.unet.training import Batch, PrepareBatch, Trainer


def our_steps(split: PreparedSplit, params: Params, steps: int) -> Callable[[], None]:
    """Return a function that takes `steps` steps of the pipeline's own training."""
    trainer, prepare, batches = begin_steps(split, params)

    def run() -> None:
        for _ in range(steps):
            trainer.take_step(next(batches), prepare)

    return run


def begin_steps(
    split: PreparedSplit, params: Params, resident: ResidentImages | None = None
) -> tuple[Trainer, PrepareBatch, Iterator[Batch]]:
    """Return all that a step of the pipeline's own training takes: its trainer, its preparation and its batches."""
    trainer, feed, prepare = start_training(split, 0, params.recipe, params.housekeeping, resident)
    trainer.model.train()
    return trainer, prepare, feed.batches_from(0)


def prepare_once(batch: Batch, prepare: PrepareBatch, trainer: Trainer) -> PrepareBatch:
    """Return a preparation that always gives what `prepare` makes of this batch."""
    tiles, label_maps = (part.to(trainer.runtime.device) for part in batch[:2])
    made = prepare(tiles.permute(0, 3, 1, 2), label_maps, batch.crop_px, trainer.generator)
    return lambda *_: made


class SmpLoop:
    """SMP's example loop; its workers are halted while the other side is timed.

    Args:
        split: the images.
        params: with `augment.backend` albumentations.
        runtime: where the network runs, and in which precision; NCHW whatever it says of the layout.
        workers: of the DataLoader.
        steps: that a call takes.
    """

    def __init__(self, split: PreparedSplit, params: Params, runtime: Runtime, workers: int, steps: int) -> None:
        train = params.train
        self.params, self.loss, self.runtime, self.steps = params, build_loss(params.loss), runtime, steps
        self.model: nn.Module = build_model(params.unet).train().to(runtime.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=train.lr)
        self.scaler = runtime.scaler()
        images = TrainingImages(split, params.contrast, params.size, train.balance)
        dataset = TileDataset(images, train.tile_px, CpuAugment(params.augment, train.crop_px), 0, 0, 10**6)
        loader = DataLoader(
            dataset,
            train.batch,
            num_workers=workers,
            multiprocessing_context="forkserver",
            pin_memory=runtime.device.type == "cuda",
            worker_init_fn=start_worker,
        )
        self.batches: Iterator[Any] = iter(loader)
        self._workers: list[Any] = self.batches._workers  # type: ignore[attr-defined]

    def __call__(self) -> None:
        self._signal(signal.SIGCONT)
        for _ in range(self.steps):
            tiles, label_maps = (part.to(self.runtime.device) for part in next(self.batches))
            images, ids = crop_batch(tiles.permute(0, 3, 1, 2), label_maps, self.params.train.crop_px)
            targets = encode_targets(ids, self.params.targets)
            with self.runtime.autocast():
                logits = self.model(images.contiguous())
            total, _ = self.loss(logits, targets, None)
            self.optimizer.zero_grad()
            self.scaler.scale(total).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total.item()
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        del self.batches

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            os.kill(worker.pid, number)
