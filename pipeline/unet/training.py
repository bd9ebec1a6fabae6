"""The training loop: batches to weights.

In: a model, batches by their running number, and a function that makes inputs and targets of a batch on the device.
Out: the model with its averaged weights, and a history with a row per epoch. The last averaged weights are the result:
what watches the training selects nothing. Every random draw is a function of (seed, step), so a run that was
interrupted ends in the same weights, bit for bit, as one that was not.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from pipeline.errors import InputError
from pipeline.params import LossParams, TrainParams
from pipeline.progress import track
from pipeline.unet.checkpoint import Checkpoint
from pipeline.unet.losses import combined_loss
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import autocast, memory_format

Batch = tuple[Tensor, Tensor]
# (images, label_maps, generator) of a batch on the device -> inputs, targets, and weights of pixels or None.
PrepareBatch = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor | None]]
Watch = Callable[[NormalizedUNet, int], dict[str, float]]
History = list[dict[str, float]]
ImagesOf = Callable[[int], Sequence[str]]


class Trainer:
    """One fold's training: its model, averaged weights, optimiser and schedule, and how to save and resume them.

    Raises:
        InputError: `train.compile` on a CPU.
    """

    def __init__(self, model: NormalizedUNet, train: TrainParams, loss: LossParams, device: torch.device) -> None:
        self.model = model.to(device).to(memory_format=memory_format(train.channels_last))
        self.ema = deepcopy(self.model).eval().requires_grad_(False)
        if train.compile and device.type == "cpu":
            raise InputError("train.compile is true on a CPU, where it gains nothing; set it to false")
        # The compiled network shares the weights: only steps go through it.
        self._forward = torch.compile(self.model) if train.compile else self.model
        self._averaged, self._current = (
            [value for value in network.state_dict().values() if value.is_floating_point()]
            for network in (self.ema, self.model)
        )
        self.train, self.loss, self.device = train, loss, device
        self.steps = train.epochs * train.steps_per_epoch
        self.optimizer = AdamW(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
        # At least two steps go up: torch divides by the number of steps between the first and the peak.
        warmup = min(1.0, max(train.warmup, 2 / (self.steps + 1)))
        self.schedule = OneCycleLR(self.optimizer, train.lr, total_steps=self.steps + 1, pct_start=warmup)
        self.generator = torch.Generator(device)
        self.step, self.seconds = 0, 0.0
        self.history: History = []
        self._sums: dict[str, Tensor] = {}  # of the loss terms, over the steps of the running epoch
        self._unchecked: list[tuple[int, float, Tensor]] = []  # step, rate, and loss and gradient norm on the device

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "sums": self._sums,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self._sums = state["sums"]

    def take_step(self, batch: Batch, prepare: PrepareBatch) -> None:
        """Learn from one batch of tiles (B, T, T, 3) uint8 and label maps (B, T, T) integer on the CPU.

        Nothing here waits for the device.
        """
        seed = self.train.seed * 1_000_003 + self.step
        torch.manual_seed(seed)  # dropout
        self.generator.manual_seed(seed)
        tiles, label_maps = (part.to(self.device, non_blocking=True) for part in batch)
        inputs, targets, weights = prepare(tiles.permute(0, 3, 1, 2), label_maps, self.generator)
        inputs = inputs.contiguous(memory_format=memory_format(self.train.channels_last))
        with autocast(self.device, self.train.precision):
            logits = self._forward(inputs)
        targets, weights = center_crop(targets, logits), None if weights is None else center_crop(weights, logits)
        total, terms = combined_loss(logits, targets, self.loss, weights)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        rate = float(self.schedule.get_last_lr()[0])
        self._unchecked.append((self.step, rate, torch.stack([total.detach().float(), norm.float()])))
        self.optimizer.step()
        self.schedule.step()
        self._average_weights()
        self.step += 1
        for name, value in {"loss": total.detach(), **terms, "grad_norm": norm}.items():
            self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float()

    @torch.no_grad()
    def _average_weights(self) -> None:
        """Move the averaged weights and batch-norm statistics towards the model's by an exponential moving average.

        The decay starts low, min(decay, (1 + t) / (10 + t)), so that the first steps do not linger.
        Source: tf.train.ExponentialMovingAverage, num_updates.
        """
        decay = min(self.train.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)

    def find_divergence(self) -> tuple[int, float, float] | None:
        """Return step, learning rate and loss of the first step since the last call that is no number, or None.

        A step diverges where its loss or its gradient is infinite or not a number. One transfer from the device.
        """
        unchecked, self._unchecked = self._unchecked, []
        values = torch.stack([value for _, _, value in unchecked]).cpu() if unchecked else torch.zeros(0, 2)
        wrong = (~values.isfinite().all(dim=1)).nonzero()
        if len(wrong) == 0:
            return None
        first = int(wrong[0])
        return unchecked[first][0], unchecked[first][1], float(values[first, 0])

    def close_epoch(self, watched: dict[str, float]) -> None:
        """Append the epoch's row to the history: means of the loss terms, the rate, and what was watched."""
        steps = self.train.steps_per_epoch
        means = {name: float(value) / steps for name, value in self._sums.items()}
        self._sums = {}
        row: dict[str, float] = {
            "epoch": self.step // steps,
            "step": self.step,
            "lr": float(self.schedule.get_last_lr()[0]),
        }
        self.history.append({**row, **means, **watched, "seconds": self.seconds})


def center_crop(maps: Tensor, like: Tensor) -> Tensor:
    """Cut the middle of maps (..., H, W) to the size of `like`: a valid-padding network predicts only the centre."""
    (height, width), (rows, columns) = maps.shape[-2:], like.shape[-2:]
    top, left = (height - rows) // 2, (width - columns) // 2
    return maps[..., top : top + rows, left : left + columns]


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
    state = checkpoint.load(trainer.device)
    if state is not None:
        trainer.restore(state)
        what = "resumed" if trainer.step < trainer.steps else f"trained already, as {checkpoint.folder} has it,"
        print(f"{title}: {what} at step {trainer.step} of {trainer.steps}", flush=True)
    saved_step = trainer.step

    def refuse_divergence() -> None:
        found = trainer.find_divergence()
        if found is None:
            return
        step, rate, loss = found
        names = f", images {', '.join(images_of(step))}" if images_of else ""
        raise InputError(
            f"{title}: step {step + 1} of {trainer.steps}: the loss became {loss} or its gradient no number, at a "
            f"learning rate of {rate:.3g}{names}; lower train.lr ({trainer.train.lr}) or train.clip_norm "
            f"({trainer.train.clip_norm}), or look at these images; the last good state, of step {saved_step}, is "
            f"left in {checkpoint.folder}"
        )

    def save() -> None:
        nonlocal saved_step
        refuse_divergence()
        checkpoint.save(trainer.state())
        saved_step = trainer.step

    saved = mark = time.monotonic()
    remaining = range(trainer.step, trainer.steps)
    with _stop_requests() as stop_requested:
        trainer.model.train()
        steps = zip(track(remaining, title, len(remaining), "step"), batches_from(trainer.step), strict=True)
        for _, batch in steps:
            trainer.take_step(batch, prepare)
            now = time.monotonic()
            trainer.seconds += now - mark
            mark = now
            if trainer.step % trainer.train.steps_per_epoch == 0:
                refuse_divergence()
                trainer.close_epoch(watch(trainer.ema, trainer.step))
                mark = time.monotonic()
            if stop_requested():
                save()
                print(
                    f"{title}: stopped at step {trainer.step}, state saved; run the same command to go on", flush=True
                )
                raise KeyboardInterrupt
            if now - saved >= checkpoint_every_s or trainer.step == trainer.steps:
                save()
                saved = mark = time.monotonic()
    return trainer.ema


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGHUP and SIGINT into a question to be asked between steps; nohup's SIGHUP stays ignored."""
    received: list[int] = []
    old = {
        number: signal.signal(number, lambda n, _: received.append(n))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
