"""The training loop: what it promises is that an interruption changes nothing, and that it learns."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.params import LossParams, NetworkParams, TrainParams
from pipeline.unet.checkpoint import Checkpoint, locked_folder
from pipeline.unet.model import NormalizedUNet, build_model
from pipeline.unet.runtime import Runtime
from pipeline.unet.training import Batch, Phase, Trainer, phases_of, train_model

CPU = Runtime(torch.device("cpu"), "bf16", channels_last=True)
FP16 = replace(CPU, precision="fp16")
UNET = NetworkParams(name="vanilla", depth=3, width=4, padding="same", upsampling="bilinear", dropout=0.2)
DEFAULT = compose_params()


@pytest.fixture
def train() -> TrainParams:
    sizes = {"epochs": 3, "steps_per_epoch": 4, "batch": 2, "crop_px": 32, "start_crop_px": 32, "tile_px": 32}
    return DEFAULT.train.model_copy(update=sizes)


def make_trainer(
    train: TrainParams, kind: type[Trainer] = Trainer, loss: LossParams = DEFAULT.loss, runtime: Runtime = CPU
) -> Trainer:
    torch.manual_seed(train.seed)
    return kind(build_model(UNET), train, loss, runtime)


def make_batches(train: TrainParams, step: int) -> Iterator[Batch]:
    """Bright discs are nuclei; batch n depends on n alone."""
    for number in range(step, train.epochs * train.steps_per_epoch):
        generator = torch.Generator().manual_seed(number)
        centres = torch.randint(8, 24, (train.batch, 2), generator=generator)
        axis = torch.arange(32)
        inside = (axis[:, None] - centres[:, 0, None, None]) ** 2 + (axis - centres[:, 1, None, None]) ** 2 < 36
        yield Batch((inside[..., None] * 200).expand(-1, -1, -1, 3).to(torch.uint8).contiguous(), inside.int(), 32)


def prepare(
    images: Tensor, label_maps: Tensor, crop_px: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, None]:
    assert crop_px == images.shape[-1]
    noise = torch.rand(images.shape, generator=generator) * 0.1
    foreground = (label_maps > 0).float()
    return images.float() / 255 + noise, torch.stack([foreground, 0 * foreground, foreground], 1), None


def no_watch(_: NormalizedUNet, step: int) -> dict[str, float]:
    return {"val_map": float(step)}


def run(
    train: TrainParams, folder: Path, watch: object = no_watch, runtime: Runtime = CPU
) -> tuple[dict[str, Tensor], Trainer]:
    trainer = make_trainer(train, runtime=runtime)
    model = train_model(trainer, lambda step: make_batches(train, step), prepare, Checkpoint(folder), watch, 1e-9, "t")
    return model.state_dict(), trainer


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_same_seed_gives_the_same_weights_bit_for_bit(train: TrainParams, tmp_path: Path) -> None:
    assert_equal(run(train, tmp_path / "a")[0], run(train, tmp_path / "b")[0])


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss scale of fp16 begin too high, and grow every third step."""
    make = partial(torch.amp.GradScaler, "cpu", init_scale=2.0**24, growth_interval=3)
    monkeypatch.setattr(Runtime, "scaler", lambda runtime: make(enabled=runtime.precision == "fp16"))


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("runtime", [CPU, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_ends_in_the_same_weights(
    train: TrainParams, tmp_path: Path, stop_at: int, signal_number: int, runtime: Runtime
) -> None:
    train = train.model_copy(update={"steps_per_epoch": 8})  # time for the scale to come down and to grow
    whole, uninterrupted = run(train, tmp_path / "whole", runtime=runtime)
    stopped = 0

    class Interrupting(Trainer):
        def take_step(self, batch: Batch, prepare: object) -> None:
            nonlocal stopped
            super().take_step(batch, prepare)  # type: ignore[arg-type]
            if self.step == stop_at and not stopped:
                stopped = self.step
                os.kill(os.getpid(), signal_number)

    trainer = make_trainer(train, Interrupting, runtime=runtime)
    with pytest.raises(KeyboardInterrupt):
        train_model(
            trainer,
            lambda step: make_batches(train, step),
            prepare,
            Checkpoint(tmp_path / "cut"),
            no_watch,
            1e-9,
            "",
        )
    assert stopped == stop_at
    resumed, again = run(train, tmp_path / "cut", runtime=runtime)
    assert_equal(whole, resumed)
    assert uninterrupted.history == again.history
    assert uninterrupted.scaler.state_dict() == again.scaler.state_dict()
    assert len(again.epoch_seconds) == train.epochs
    assert again.epoch_seconds == sorted(again.epoch_seconds)
    assert again.epoch_seconds[-1] == again.seconds > 0


@pytest.mark.usefixtures("restless")
def test_a_scale_that_is_too_high_costs_steps_and_nothing_else(train: TrainParams) -> None:
    trainer, batches = make_trainer(train, runtime=FP16), make_batches(train, 0)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.take_step(next(batches), prepare)
    assert_equal(before, dict(trainer.model.named_parameters()))
    assert trainer.scaler.get_scale() == 2.0**23
    assert trainer.step_watch.find_divergence() is None
    assert float(trainer._sums["grad_norm"]) == 0
    batch = next(batches)
    while all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters()):
        trainer.take_step(batch, prepare)
        assert trainer.step < 12, "no scale was low enough"
    assert trainer.step_watch.find_divergence() is None


def test_a_gradient_that_is_no_number_at_any_scale_is_a_divergence(
    train: TrainParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Runtime, "scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=4.0))
    trainer = make_trainer(train, runtime=FP16)
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        InputError, match=r"step 3 of 12: the loss became 0|step 3 of 12: the loss became [\d.]+ or its"
    ):
        train_model(
            trainer, lambda step: make_batches(train, step), prepare, Checkpoint(tmp_path), no_watch, 1e9, "test"
        )


@pytest.mark.usefixtures("restless")
def test_fp16_learns_what_float32_learns(train: TrainParams, tmp_path: Path) -> None:
    train = train.model_copy(update={"epochs": 4, "steps_per_epoch": 20, "lr": 0.01, "ema_decay": 0.9})
    losses = {
        precision: run(train, tmp_path / precision, runtime=replace(CPU, precision=precision))[1].history[-1]["loss"]
        for precision in ("fp16", "fp32")
    }
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.2)


def test_watching_changes_nothing(train: TrainParams, tmp_path: Path) -> None:
    def noisy_watch(model: NormalizedUNet, step: int) -> dict[str, float]:
        torch.rand(step)
        model(torch.rand(1, 3, 32, 32))
        return {"val_map": 0.5}

    assert_equal(run(train, tmp_path / "a")[0], run(train, tmp_path / "b", noisy_watch)[0])


def test_it_learns_to_see_bright_discs(train: TrainParams, tmp_path: Path) -> None:
    train = train.model_copy(update={"epochs": 8, "steps_per_epoch": 20, "lr": 0.01, "ema_decay": 0.9})
    history = run(train, tmp_path)[1].history
    assert [row["step"] for row in history] == [20 * n for n in range(1, 9)]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("bad_step", [0, 5, 11])
def test_a_loss_that_is_no_number_names_the_step_and_leaves_the_last_good_state(
    train: TrainParams, tmp_path: Path, bad: float, bad_step: int
) -> None:
    """Saving after every step, what is saved last is the state from before the step that diverged."""
    seen = 0

    def poison(*batch: Any) -> tuple[Tensor, Tensor, None]:
        nonlocal seen
        inputs, targets, _ = prepare(*batch)
        seen += 1
        return inputs, targets * bad if seen == bad_step + 1 else targets, None

    checkpoint = Checkpoint(tmp_path)
    message = (
        rf"step {bad_step + 1} of 12: .*learning rate of .*, images {bad_step}; .*train\.lr.*of step {bad_step}, is"
    )
    with pytest.raises(InputError, match=message):
        train_model(
            make_trainer(train),
            lambda step: make_batches(train, step),
            poison,
            checkpoint,
            no_watch,
            1e-9,
            "test",
            lambda step: [str(step)],
        )
    state = checkpoint.load(torch.device("cpu"))
    assert (state["step"] if state else 0) == bad_step
    assert all(value.isfinite().all() for value in (state["model"].values() if state else ()))


def test_divergence_between_saves_is_found_before_the_next_one(train: TrainParams, tmp_path: Path) -> None:
    def poison(*batch: Any) -> tuple[Tensor, Tensor, None]:
        inputs, targets, _ = prepare(*batch)
        return inputs * float("nan"), targets, None

    with pytest.raises(InputError, match=r"step 1 of 12: the loss became nan .*of step 0"):
        train_model(
            make_trainer(train), lambda step: make_batches(train, step), poison, Checkpoint(tmp_path), no_watch,
            1e9, "test",
        )  # fmt: skip
    assert Checkpoint(tmp_path).load(torch.device("cpu")) is None


def test_the_halves_of_a_training_have_crops_of_their_own(train: TrainParams) -> None:
    sizes = {"epochs": 3, "steps_per_epoch": 5, "start_crop_px": 96, "crop_px": 192, "tile_px": 256}
    assert phases_of(train.model_copy(update=sizes)) == (Phase(0, 7, 128, 96), Phase(7, 15, 256, 192))


def test_the_network_is_shown_crops_of_the_batch_s_side(train: TrainParams) -> None:
    trainer, seen = make_trainer(train), []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))

    def crop(images: Tensor, label_maps: Tensor, crop_px: int, _: torch.Generator) -> tuple[Tensor, Tensor, None]:
        inputs = images[..., :crop_px, :crop_px].float()
        return inputs, torch.zeros_like(inputs), None

    tiles, label_maps, _ = next(make_batches(train, 0))
    for crop_px in (16, 24):
        trainer.take_step(Batch(tiles, label_maps, crop_px), crop)
    assert seen == [(2, 3, 16, 16), (2, 3, 24, 24)]


def test_weights_of_pixels_reach_the_loss(train: TrainParams) -> None:
    loss = LossParams.model_validate(DEFAULT.loss.model_dump() | {"terms": {"bce": {"weight": 1.0}}})

    def weigh(weight: float) -> float:
        trainer = make_trainer(train, loss=loss)

        def weighted(*batch: Any) -> tuple[Tensor, Tensor, Tensor]:
            inputs, targets, _ = prepare(*batch)
            return inputs, targets, torch.full_like(targets[:, :1], weight)

        trainer.take_step(next(make_batches(train, 0)), weighted)
        trainer.step = train.steps_per_epoch
        trainer.close_epoch({})
        return trainer.history[0]["bce"]

    assert weigh(2.0) == pytest.approx(2 * weigh(1.0), rel=1e-5)


@pytest.mark.parametrize("damage", [b"half a checkpoint", b"", b"0" * 64 + b"\nnot what this digest is of"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    (tmp_path / "newest.pt").write_bytes(damage)
    assert checkpoint.load(torch.device("cpu")) == {"step": 1}
    assert (tmp_path / "newest.damaged").exists()
    assert "newest.pt: damaged" in capsys.readouterr().out
    assert Checkpoint(tmp_path / "empty").load(torch.device("cpu")) is None


def save_and_die(folder: Path, fatal_call: int) -> None:
    """Save over what is in `folder`, and be killed at the given call to the system."""
    calls = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("replace", "unlink", "open", "close", "fsync", "chmod"):
        setattr(os, name, dying(getattr(os, name)))
    Checkpoint(folder).save({"step": 3})


def test_a_save_that_is_killed_at_any_of_its_calls_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process saves over two checkpoints, and dies at its 1st, 2nd, ... call to the system, until it survives."""
    survived, call = False, 0
    while not survived:
        call += 1
        folder = tmp_path / str(call)
        Checkpoint(folder).save({"step": 1})
        Checkpoint(folder).save({"step": 2})
        pid = os.fork()
        if pid == 0:  # a fork, since a fresh process takes seconds to import torch
            save_and_die(folder, call)
            os._exit(0)
        survived = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        state = Checkpoint(folder).load(torch.device("cpu"))
        assert state in ([{"step": 3}] if survived else [{"step": 2}, {"step": 3}]), call
        Checkpoint(folder).save({"step": 4})
        assert sorted(path.name for path in folder.iterdir()) == ["newest.pt", "previous.pt"]
    assert call > 5


def test_a_folder_is_held_by_one_process_only(tmp_path: Path) -> None:
    held = locked_folder(tmp_path / "fold")
    with held, pytest.raises(InputError, match="another process"):
        locked_folder(tmp_path / "fold").__enter__()
    with locked_folder(tmp_path / "fold"):
        pass
