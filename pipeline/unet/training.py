"""The training loop: batches to weights.

In: a model, batches by their running number, and a function that makes inputs and targets of a batch on the device.
Out: the model with its averaged weights, and a history with a row per epoch. The last averaged weights are the result:
what watches the training selects nothing. Every random draw is a function of (seed, step), so a run that was
interrupted ends in the same weights, bit for bit, as one that was not.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from pipeline.errors import InputError
from pipeline.params import LossParams, TrainParams
from pipeline.progress import track
from pipeline.unet.blocks import center_crop
from pipeline.unet.checkpoint import Checkpoint
from pipeline.unet.divergence import StepWatch
from pipeline.unet.losses import build_loss
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import Runtime
from pipeline.unet.stopping import watch_for_stop

# (images, label_maps, crop_px, generator) of a batch on the device -> inputs of that side, targets, and weights of
# pixels or None.
PrepareBatch = Callable[[Tensor, Tensor, int, torch.Generator], tuple[Tensor, Tensor, Tensor | None]]
Watch = Callable[[NormalizedUNet, int], dict[str, float]]
History = list[dict[str, float]]
ImagesOf = Callable[[int], Sequence[str]]

_STATEFUL = ("model", "ema", "optimizer", "schedule", "scaler")  # of a trainer's attributes


class Batch(NamedTuple):
    """What one step learns from.

    Attributes:
        tiles: (B, T, T, 3) uint8 RGB.
        label_maps: (B, T, T) integer ids.
        crop_px: side of what the network is shown of them.
    """

    tiles: Tensor
    label_maps: Tensor
    crop_px: int


class Phase(NamedTuple):
    """The steps from `first_step` up to, not including, `last_step`, whose tiles and crops are of one size."""

    first_step: int
    last_step: int
    tile_px: int
    crop_px: int


def phases_of(train: TrainParams) -> tuple[Phase, ...]:
    """Return the halves of a training: small crops first, as a step of them takes a third of the time."""
    steps = train.epochs * train.steps_per_epoch
    # The rim that the warp reaches into, in proportion.
    start_tile_px = max(train.start_crop_px, train.tile_px * train.start_crop_px // train.crop_px)
    first = Phase(0, steps // 2, start_tile_px, train.start_crop_px)
    return first, Phase(first.last_step, steps, train.tile_px, train.crop_px)


class Trainer:
    """One fold's training: its model, averaged weights, optimiser and schedule, and how to save and resume them.

    Raises:
        InputError: `train.compile` on a CPU, or no loss term has a weight.
    """

    def __init__(self, model: NormalizedUNet, train: TrainParams, loss: LossParams, runtime: Runtime) -> None:
        device = runtime.device
        self.model = model.to(device).to(memory_format=runtime.memory_format)
        self.ema = deepcopy(self.model).eval().requires_grad_(False)
        if train.compile and device.type == "cpu":
            raise InputError("train.compile is true on a CPU, where it gains nothing; set it to false")
        # The compiled network shares the weights: only steps go through it.
        self._forward = torch.compile(self.model) if train.compile else self.model
        self._averaged, self._current = (
            [value for value in network.state_dict().values() if value.is_floating_point()]
            for network in (self.ema, self.model)
        )
        self.train, self.runtime = train, runtime
        self._loss = build_loss(loss)
        self.phases = phases_of(train)
        self.steps = self.phases[-1].last_step
        self.optimizer = AdamW(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
        # At least two steps go up: torch divides by the number of steps between the first and the peak.
        warmup = min(1.0, max(train.warmup, 2 / (self.steps + 1)))
        self.schedule = OneCycleLR(self.optimizer, train.lr, total_steps=self.steps + 1, pct_start=warmup)
        self.scaler = runtime.scaler()
        self.generator = torch.Generator(device)
        self.step, self.seconds = 0, 0.0
        self.history: History = []  # a row per epoch, the same in every run
        self.epoch_seconds: list[float] = []  # of training, up to each epoch's end
        self._sums: dict[str, Tensor] = {}  # of the loss terms, over the steps of the running epoch
        self.step_watch = StepWatch()

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        numbers = {"step": self.step, "seconds": self.seconds, "epoch_seconds": self.epoch_seconds}
        parts = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        return {**parts, **numbers, "history": self.history, "sums": self._sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds, self.epoch_seconds = state["step"], state["seconds"], state["epoch_seconds"]
        self.history, self._sums = state["history"], state["sums"]

    def take_step(self, batch: Batch, prepare: PrepareBatch) -> None:
        """Learn from one batch, on whatever device it is. Nothing here waits for the trainer's."""
        seed = self.train.seed * 1_000_003 + self.step
        torch.manual_seed(seed)  # dropout
        self.generator.manual_seed(seed)
        tiles, label_maps = (part.to(self.runtime.device, non_blocking=True) for part in batch[:2])
        inputs, targets, weights = prepare(tiles.permute(0, 3, 1, 2), label_maps, batch.crop_px, self.generator)
        with self.runtime.autocast():
            logits = self._forward(inputs.contiguous(memory_format=self.runtime.memory_format))
        # A network with valid padding predicts only the centre.
        predicted = logits.shape[-2:]
        weights = None if weights is None else center_crop(weights, predicted)
        total, terms = self._loss(logits, center_crop(targets, predicted), weights)
        self.optimizer.zero_grad(set_to_none=True)
        norm = self._find_gradient(total)
        self.step_watch.note(self.step, float(self.schedule.get_last_lr()[0]), total, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self._average_weights()
        self.step += 1
        for name, value in {"loss": total.detach(), **terms, "grad_norm": norm}.items():
            self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float()

    def _find_gradient(self, total: Tensor) -> Tensor:
        """Leave the gradient of `total` in the parameters, clipped, and return its norm before that.

        In fp16 it is found of a scaled loss. Where that overflows, the scaler leaves out the step and halves the scale,
        and the norm is given as 0; no number is left of it only where there was nothing left to halve.
        """
        scaled = self.scaler.scale(total)
        scaled.backward()
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        if not self.scaler.is_enabled():
            return norm
        scale = self.scaler.scale(torch.ones_like(norm))  # how to learn it without waiting for the device
        return norm.where(norm.isfinite() | (scale <= 1), 0.0)

    @torch.no_grad()
    def _average_weights(self) -> None:
        """Move the averaged weights and batch-norm statistics towards the model's by an exponential moving average.

        The decay starts low, min(decay, (1 + t) / (10 + t)), so that the first steps do not linger.
        Source: tf.train.ExponentialMovingAverage, num_updates.
        """
        decay = min(self.train.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)

    def close_epoch(self, watched: dict[str, float]) -> None:
        """Append the epoch's row to the history: means of the loss terms, the rate, and what was watched."""
        steps = self.train.steps_per_epoch
        means = {name: float(value) / steps for name, value in self._sums.items()}
        self._sums = {}
        row = {"epoch": self.step // steps, "step": self.step, "lr": float(self.schedule.get_last_lr()[0])}
        self.history.append({**row, **means, **watched})
        self.epoch_seconds.append(self.seconds)


def train_model(
    trainer: Trainer,
    batches_from: Callable[[int], Iterable[Batch]],
    prepare: PrepareBatch,
    checkpoint: Checkpoint,
    watch: Watch,
    checkpoint_every_s: float,
    title: str,
    images_of: ImagesOf | None = None,
) -> NormalizedUNet:
    """Train to the end of the schedule, from the last checkpoint if there is one, and return the averaged model.

    The last state stays in `checkpoint`: a run that is killed before its weights are safe repeats no training.

    Args:
        trainer: a fresh one.
        batches_from: gives the batches from a step on.
        prepare: makes inputs and targets on the device.
        checkpoint: where the state is saved every `checkpoint_every_s`, at the end, and on SIGTERM and Ctrl-C.
        watch: called with the averaged model and the step at each epoch's end; its numbers go into the history.
        title: of the progress bar.
        images_of: says which images a step learns from, for the message about one that diverges.

    Raises:
        InputError: the loss or a gradient became infinite or not a number; the last state from before is kept.
        KeyboardInterrupt: the process was asked to stop; the state is saved.
    """
    states = _States(trainer, checkpoint, title, images_of)
    states.resume()
    saved = mark = time.monotonic()
    remaining = range(trainer.step, trainer.steps)
    with watch_for_stop() as stop_requested:
        trainer.model.train()
        steps = zip(track(remaining, title, len(remaining), "step"), batches_from(trainer.step), strict=True)
        for _, batch in steps:
            trainer.take_step(batch, prepare)
            now = time.monotonic()
            trainer.seconds += now - mark
            mark = now
            if trainer.step % trainer.train.steps_per_epoch == 0:
                states.refuse_divergence()
                trainer.close_epoch(watch(trainer.ema, trainer.step))
                mark = time.monotonic()
            if stop_requested():
                states.save()
                step = trainer.step
                print(f"{title}: stopped at step {step}, state saved; run the same command to go on", flush=True)
                raise KeyboardInterrupt
            if now - saved >= checkpoint_every_s or trainer.step == trainer.steps:
                states.save()
                saved = mark = time.monotonic()
    return trainer.ema


class _States:
    """The saved states of a training, of which none has diverged."""

    def __init__(self, trainer: Trainer, checkpoint: Checkpoint, title: str, images_of: ImagesOf | None) -> None:
        self._trainer, self._checkpoint, self._title, self._images_of = trainer, checkpoint, title, images_of
        self._saved_step = 0

    def resume(self) -> None:
        """Bring the trainer to the last saved state, if there is one."""
        trainer, folder = self._trainer, self._checkpoint.folder
        state = self._checkpoint.load(trainer.runtime.device)
        if state is not None:
            trainer.restore(state)
            what = "resumed" if trainer.step < trainer.steps else f"trained already, as {folder} has it,"
            print(f"{self._title}: {what} at step {trainer.step} of {trainer.steps}", flush=True)
        self._saved_step = trainer.step

    def save(self) -> None:
        self.refuse_divergence()
        self._checkpoint.save(self._trainer.state())
        self._saved_step = self._trainer.step

    def refuse_divergence(self) -> None:
        """Raise where a step since the last call diverged."""
        found = self._trainer.step_watch.find_divergence()
        if found is None:
            return
        train = self._trainer.train
        names = f", images {', '.join(self._images_of(found.step))}" if self._images_of else ""
        raise InputError(
            f"{self._title}: step {found.step + 1} of {self._trainer.steps}: the loss became {found.loss} or its "
            f"gradient no number, at a learning rate of {found.rate:.3g}{names}; lower train.lr ({train.lr}) or "
            f"train.clip_norm ({train.clip_norm}), or look at these images; the last good state, of step "
            f"{self._saved_step}, is left in {self._checkpoint.folder}"
        )
