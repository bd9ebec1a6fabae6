"""Is what the device computes right: against the CPU, step after step, run after run, killed and resumed."""

import os
import shutil
import signal
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pipeline.folds.training import train_fold
from pipeline.images import augment
from pipeline.images.effects import Draw
from pipeline.images.resident import cut_windows
from pipeline.nuclei.targets import encode_targets, paper_weight_map
from pipeline.params import AugmentParams, Params
from pipeline.unet.losses import build_loss
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import start_runtime
from pipeline.unet.training import Batch, PrepareBatch, Trainer
from pipeline.unet.weights import read_weights
from tests.benchmarks.loops import begin_steps, prepare_once
from tests.gpu.fake import follow_from_loss, follow_to_loss
from tests.gpu.results import Questions, Table
from tests.gpu.setting import Setting, any_algorithms, begin_timed, synchronize, time_on

# What is computed in float32 differs by sums in another order. As training runs, matrix products and convolutions may
# take TF32, with 10 bits behind the point, as fp16 has; bf16 has 7.
TOLERANCES = {
    "tiles cut from resident images": 0.0,
    "label maps, mirrored and turned": 0.0,
    "label maps, whole policy: share of pixels": 1e-3,  # where two are as near, rounding decides
    "images, whole policy": 1e-3,  # of [0, 1]
    "images, whole policy, as it runs: mean": 1e-3,
    "foreground and boundary": 0.0,
    "distance": 1e-6,
    "weight map": 1e-4,  # of a maximum of w0 + 1 = 11
    "loss": 1e-4,
    "loss, its gradient": 1e-4,  # of the largest
    "network, fp32: mean of probabilities": 1e-4,
    "network, fp32, as it runs: mean": 1e-3,
    "network, bf16: mean": 1e-2,
    "network, fp16: mean": 2e-3,
}
_LONGEST_S = 90.0  # of a short training in a process of its own


def questions(setting: Setting) -> Questions:
    """Yield what is asked."""
    yield "the device against the CPU", partial(compare_with_cpu, setting)
    yield "no step waits for the host", partial(watch_syncs, setting)
    yield "one seed twice, and killed and resumed", partial(repeat_training, setting)
    yield "what is not deterministic, and what it costs to be", partial(price_determinism, setting)


class HostDraw(Draw):
    """Draws on the host, so that two devices get the same numbers."""

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.batch, *shape, generator=self.generator).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator).to(self.device)


def compare_with_cpu(setting: Setting) -> Table:
    """Compute every part of a step on the CPU and on the device, from the same numbers."""
    params = setting.changed(
        runtime__device="cpu", housekeeping__loader_workers=0, train__batch=min(8, setting.params.train.batch)
    )
    trainer, _, batches = begin_steps(setting.split, params)
    batch = next(batches)
    found = {**_compare_images(setting, params, batch), **_compare_networks(setting, params, trainer.model)}
    rows, missed = [], []
    for what, difference in found.items():
        tolerance = TOLERANCES[what]
        rows.append([what, f"{difference:.2g}", f"{tolerance:.2g}"])
        if not difference <= tolerance:  # NaN is missed too
            missed.append(f"{what}: {difference:.3g} apart, more than {tolerance:.2g}")
    return Table(
        "The device against the CPU",
        ["what", "difference", "tolerance"],
        rows,
        missed,
        "The largest difference, or what is said. The CPU computes in float32, and so does the device but for the rows "
        "that say `as it runs`: with TF32 where it has that.",
        found,
    )


def _compare_images(setting: Setting, params: Params, batch: Batch) -> dict[str, float]:
    tiles, ids, crop_px = batch.tiles.permute(0, 3, 1, 2), batch.label_maps, params.train.crop_px
    flips = AugmentParams(backend="device", effects={"flips": {}})
    pixels = batch.tiles.reshape(-1, 3)
    height, width = batch.tiles.shape[1:3]
    windows = torch.tensor([[n * height * width, height, width, 0, 0] for n in range(len(ids))])

    def cut(device: torch.device) -> Tensor:
        on = pixels.to(device), ids.ravel().to(device), windows.to(device)
        return torch.cat([part.ravel().int() for part in cut_windows(*on, crop_px)])

    def augmented(policy: AugmentParams, device: torch.device) -> tuple[Tensor, Tensor]:
        with mock.patch.object(augment, "Draw", HostDraw):
            apply = augment.build_augment(policy)
            return apply(tiles.to(device), ids.to(device), crop_px, torch.Generator().manual_seed(7))

    def targets(device: torch.device) -> Tensor:
        return encode_targets(ids.to(device), params.targets)

    def weights(device: torch.device) -> Tensor:
        return paper_weight_map(ids.to(device), params.loss.weight_map_w0, params.loss.weight_map_sigma_px)

    cpu, device = torch.device("cpu"), setting.device
    as_it_runs = augmented(params.augment, device)[0]
    with _exact():
        flipped, whole = ([augmented(policy, on) for on in (cpu, device)] for policy in (flips, params.augment))
        encoded = [targets(on) for on in (cpu, device)]
        return {
            "tiles cut from resident images": _differ(cut(cpu), cut(device)),
            "label maps, mirrored and turned": _differ(flipped[0][1], flipped[1][1]),
            "label maps, whole policy: share of pixels": float((whole[0][1] != whole[1][1].cpu()).float().mean()),
            "images, whole policy": _differ(whole[0][0], whole[1][0]),
            "images, whole policy, as it runs: mean": float((whole[0][0] - as_it_runs.cpu()).abs().mean()),
            "foreground and boundary": _differ(encoded[0][:, :2], encoded[1][:, :2]),
            "distance": _differ(encoded[0][:, 2], encoded[1][:, 2]),
            "weight map": _differ(weights(cpu), weights(device)),
            **_compare_losses(params, encoded[0], device),
        }


@contextmanager
def _exact() -> Iterator[None]:
    """Let float32 be float32: no TF32 in matrix products and convolutions."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _compare_losses(params: Params, targets: Tensor, device: torch.device) -> dict[str, float]:
    loss = build_loss(params.loss)
    logits = 3 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))

    def totals(on: torch.device) -> tuple[Tensor, Tensor]:
        leaf = logits.to(on).requires_grad_()
        total, _ = loss(leaf, targets.to(on), None)
        (gradient,) = torch.autograd.grad(total, leaf)
        return total.detach(), gradient

    (total, gradient), (other, its_gradient) = totals(torch.device("cpu")), totals(device)
    return {
        "loss": _differ(total, other),
        "loss, its gradient": _differ(gradient, its_gradient) / float(gradient.abs().max()),
    }


@torch.no_grad()
def _compare_networks(setting: Setting, params: Params, model: NormalizedUNet) -> dict[str, float]:
    px = params.train.crop_px
    images = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(2))
    model.eval()
    wanted = model(images).sigmoid()
    runtime = start_runtime(setting.params.runtime)
    model.to(runtime.device).to(memory_format=runtime.memory_format)
    there = images.to(runtime.device).contiguous(memory_format=runtime.memory_format)

    def differ(precision: str) -> float:
        with replace(runtime, precision=precision).autocast():
            return float((wanted - model(there).float().sigmoid().cpu()).abs().mean())

    with _exact():
        exact = differ("fp32")
    return {
        "network, fp32: mean of probabilities": exact,
        "network, fp32, as it runs: mean": differ("fp32"),
        "network, bf16: mean": differ("bf16"),
        "network, fp16: mean": differ("fp16"),
    }


def _differ(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two tensors of one shape, on any devices."""
    return float((one.double() - other.cpu().double()).abs().max())


@contextmanager
def _no_sync(device: torch.device) -> Iterator[None]:
    """Let CUDA raise where the host waits for it."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def watch_syncs(setting: Setting) -> Table:
    """Take training steps, of batches cut on the device, in every precision, and let waiting raise."""
    rows, missed = [], []
    for precision in ("bf16", "fp16", "fp32"):
        trainer, prepare, batches = begin_timed(setting, runtime__precision=precision)
        for _ in range(3):  # what is made once may wait
            trainer.take_step(next(batches), prepare)
        synchronize(setting.device)
        waits = "none"
        try:
            with _no_sync(setting.device):
                for _ in range(4):
                    trainer.take_step(next(batches), prepare)
        except RuntimeError as error:
            waits = str(error)[:200]
            missed.append(f"{precision}: the host waits: {waits}")
        rows.append([f"cutting, augmentation, targets and a step in {precision}", "4 steps", waits])
    note = ""
    if setting.device.type != "cuda":  # the steps above were a rehearsal, and say nothing
        recipe = setting.params.recipe
        rows = [
            ["a fake CUDA device: from cutting tiles to the loss", f"{follow_to_loss(recipe)[1]} calls", "none"],
            ["`meta` tensors: backward pass, clipping, averaging", f"{follow_from_loss(recipe)} calls", "none"],
        ]
        note = (
            "Only CUDA says where the host waits. Without one a step is followed without values, as `fake.py` says: "
            "autocast, loss scaling and the optimiser's own step are not in it."
        )
    return Table("No step waits for the host", ["where", "what was watched", "waits"], rows, missed, note)


def repeat_training(setting: Setting) -> Table:
    """Train a fold for a moment four times, each in a process of its own, and compare the weights."""
    params = setting.changed(
        train__epochs=3, train__steps_per_epoch=setting.steps(8), train__start_crop_px=setting.params.train.crop_px,
        housekeeping__loader_workers=0, housekeeping__score_every_epochs=0,
    )  # fmt: skip
    folder = setting.scratch / "repeat"
    shutil.rmtree(folder, ignore_errors=True)
    jobs = [("first", "first", False), ("second", "second", False), ("resumed", "killed", True)]
    processes = {name: _start(train_briefly, setting, params, folder, run, kill) for run, name, kill in jobs}
    codes = {name: _wait(process) for name, process in processes.items()}
    codes["resumed"] = _wait(_start(train_briefly, setting, params, folder, "resumed", False))
    title = "One seed twice, and killed and resumed"
    missed = [] if codes["killed"] == -signal.SIGKILL else [f"the training to be killed ended in {codes['killed']}"]
    missed += [f"the {name} training ended in {code}" for name, code in codes.items() if name != "killed" and code != 0]
    if missed:
        return Table(title, [], [], missed)
    first = read_weights(folder / "first.safetensors")[0]
    rows, data = [], {}
    for what, name in (("the same seed again", "second"), ("killed, and resumed", "resumed")):
        data[what] = _differ_in_all(first, read_weights(folder / f"{name}.safetensors")[0])
        rows.append([what, "the same bits" if data[what] == 0 else f"apart by {data[what]:.2g} of the largest weight"])
    steps = params.train.epochs * params.train.steps_per_epoch
    where = start_runtime(params.runtime)
    note = f"{steps} steps of {where.precision} in processes of their own, the first three side by side."
    missed += [f"{what}: other weights" for what, difference in data.items() if difference]
    return Table(title, ["run", "against the first"], rows, missed, note, data)


def train_briefly(setting: Setting, params: Params, folder: Path, run: str, kill: bool) -> None:
    """Train fold 0 of some images as `train` does; with `kill` this process ends itself at the last epoch but one."""

    def watch(_: NormalizedUNet, step: int) -> dict[str, float]:
        if kill and step >= 2 * params.train.steps_per_epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    learnt = setting.folded.outside(0)
    housekeeping = params.housekeeping.model_copy(update={"checkpoint_every_s": 1e-3 if kill else 1e9})
    train_fold(
        learnt.select(learnt.image_ids[:64]), 0, params.recipe, folder / f"{run}.safetensors", folder / run,
        housekeeping, watch=watch, title=f"fold 0, {run}",
    )  # fmt: skip


def _start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a function in a process of its own."""
    process = get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    return process


def _wait(process: BaseProcess) -> int | None:
    """Wait for a process, kill it if it takes too long, and return how it ended."""
    process.join(_LONGEST_S)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def _differ_in_all(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference between two networks' tensors, each over the largest value of its tensor."""
    pairs = [(one[name].double(), other[name].double()) for name in one]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in pairs)


def price_determinism(setting: Setting) -> Table:
    """Find what of a step differs from run to run, which operators torch names, and what it costs to avoid them."""
    trainer, prepare, batches = begin_timed(setting)
    batch = next(batches)
    made = prepare_once(batch, prepare, trainer)
    inputs, targets, _ = made(*batch, trainer.generator)
    inputs = inputs.contiguous(memory_format=trainer.runtime.memory_format)

    def gradient() -> list[Tensor]:
        trainer.optimizer.zero_grad(set_to_none=True)
        with trainer.runtime.autocast():
            logits = trainer.model(inputs)
        total, _ = trainer._loss(logits, targets, None)
        total.backward()
        return [logits.detach(), total.detach(), *(p.grad.detach().clone() for _, p in _learnt(trainer))]

    one, other = gradient(), gradient()
    modules = {
        name: type(trainer.model.get_submodule(name.rpartition(".")[0])).__name__ for name, _ in _learnt(trainer)
    }
    names = ["the forward pass", "the loss", *(f"the gradient of {name} ({kind})" for name, kind in modules.items())]
    apart = {
        name: float((a.double() - b.double()).abs().max() / a.double().abs().max())
        for name, a, b in zip(names, one, other, strict=True)
        if not torch.equal(a, b)
    }
    # Gradients are found from the output on: the last name is where they begin to differ.
    worst = f"{len(apart)} of {len(names)}, by up to {max(apart.values()):.2g}, from {[*apart][-1]} on" if apart else ""
    named = _name_operators(lambda: trainer.take_step(batch, prepare))
    usual, free = (_time_steps(setting, trainer, batch, made, is_free) for is_free in (False, True))
    rows = [
        ["a step, as it is", f"{1e3 * usual:.1f} ms, {usual / free:.2f} times as long"],
        ["a step of any algorithms, chosen by timing", f"{1e3 * free:.1f} ms"],
        ["what differs between two passes over one batch", worst or "nothing"],
        ["operators that torch has no deterministic form of", "; ".join(named) or "none"],
    ]
    return Table(
        "What is not deterministic, and what it costs to be",
        ["what", "found"],
        rows,
        data={"apart": apart, "operators": named},
    )


def _learnt(trainer: Trainer) -> list[tuple[str, Any]]:
    """Return the parameters that have a gradient, by name, those of the encoder first."""
    return [(name, p) for name, p in trainer.model.named_parameters() if p.grad is not None]


def _name_operators(run: Callable[[], Any]) -> list[str]:
    """Return the operators that warn of themselves, as they do on CUDA where there is no deterministic form of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    texts = [str(warning.message) for warning in caught]
    return sorted({text.split(" does not have")[0] for text in texts if "deterministic" in text})


def _time_steps(setting: Setting, trainer: Trainer, batch: Batch, made: PrepareBatch, is_free: bool) -> float:
    """Return the seconds of a step; `is_free` to choose its algorithms."""
    count = setting.steps(5)

    def take_steps() -> None:
        for _ in range(count):
            trainer.take_step(batch, made)

    with any_algorithms() if is_free else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        time_on(setting.device, take_steps)  # a warm-up
        return statistics.median(time_on(setting.device, take_steps) / count for _ in range(1 if setting.tiny else 5))
