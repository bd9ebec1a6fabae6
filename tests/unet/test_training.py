"""The training loop: what it promises is that an interruption changes nothing, and that it learns."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.params import LossParams, Params, TrainParams, load_params
from pipeline.unet.checkpoint import Checkpoint, fingerprint, locked_folder
from pipeline.unet.model import NormalizedUNet, build_model
from pipeline.unet.training import Batch, Trainer, center_crop, train_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def params() -> Params:
    content = load_params(ROOT / "params.yaml")
    vanilla = {"name": "vanilla", "depth": 3, "width": 4, "padding": "same", "upsampling": "bilinear", "dropout": 0.2}
    train = content.train.model_copy(
        update={"epochs": 3, "steps_per_epoch": 4, "batch": 2, "crop_px": 32, "start_crop_px": 32, "tile_px": 32}
    )
    return Params.model_validate({**content.model_dump(), "unet": vanilla, "train": train.model_dump()})


def make_trainer(params: Params) -> Trainer:
    torch.manual_seed(params.train.seed)
    return Trainer(build_model(params.unet), params.train, params.loss, torch.device("cpu"))


def make_batches(train: TrainParams, step: int) -> Iterator[Batch]:
    """Bright discs are nuclei; batch n depends on n alone."""
    for number in range(step, train.epochs * train.steps_per_epoch):
        generator = torch.Generator().manual_seed(number)
        centres = torch.randint(8, 24, (train.batch, 2), generator=generator)
        axis = torch.arange(32)
        inside = (axis[:, None] - centres[:, 0, None, None]) ** 2 + (axis - centres[:, 1, None, None]) ** 2 < 36
        yield (inside[..., None] * 200).expand(-1, -1, -1, 3).to(torch.uint8).contiguous(), inside.int()


def prepare(images: Tensor, label_maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, None]:
    noise = torch.rand(images.shape, generator=generator) * 0.1
    foreground = (label_maps > 0).float()
    return images.float() / 255 + noise, torch.stack([foreground, 0 * foreground, foreground], 1), None


def no_watch(_: NormalizedUNet, step: int) -> dict[str, float]:
    return {"val_map": float(step)}


def run(params: Params, folder: Path, watch: object = no_watch) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    trainer = make_trainer(params)
    model = train_model(
        trainer, lambda step: make_batches(params.train, step), prepare, Checkpoint(folder), watch, 1e-9, "test"
    )
    return model.state_dict(), trainer.history


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_same_seed_gives_the_same_weights_bit_for_bit(params: Params, tmp_path: Path) -> None:
    assert_equal(run(params, tmp_path / "a")[0], run(params, tmp_path / "b")[0])


@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_ends_in_the_same_weights(
    params: Params, tmp_path: Path, stop_at: int, signal_number: int
) -> None:
    whole, history = run(params, tmp_path / "whole")
    stopped = 0

    class Interrupting(Trainer):
        def take_step(self, batch: Batch, prepare: object) -> None:
            nonlocal stopped
            super().take_step(batch, prepare)  # type: ignore[arg-type]
            if self.step == stop_at and not stopped:
                stopped = self.step
                os.kill(os.getpid(), signal_number)

    torch.manual_seed(params.train.seed)
    trainer = Interrupting(build_model(params.unet), params.train, params.loss, torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt):
        train_model(
            trainer,
            lambda step: make_batches(params.train, step),
            prepare,
            Checkpoint(tmp_path / "cut"),
            no_watch,
            1e-9,
            "",
        )
    assert stopped == stop_at
    resumed, again = run(params, tmp_path / "cut")
    assert_equal(whole, resumed)
    assert [{**row, "seconds": 0} for row in history] == [{**row, "seconds": 0} for row in again]


def test_watching_changes_nothing(params: Params, tmp_path: Path) -> None:
    def noisy_watch(model: NormalizedUNet, step: int) -> dict[str, float]:
        torch.rand(step)
        model(torch.rand(1, 3, 32, 32))
        return {"val_map": 0.5}

    assert_equal(run(params, tmp_path / "a")[0], run(params, tmp_path / "b", noisy_watch)[0])


def test_it_learns_to_see_bright_discs(params: Params, tmp_path: Path) -> None:
    train = params.train.model_copy(update={"epochs": 8, "steps_per_epoch": 20, "lr": 0.01, "ema_decay": 0.9})
    _, history = run(params.model_copy(update={"train": train}), tmp_path)
    assert [row["step"] for row in history] == [20 * n for n in range(1, 9)]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_a_loss_that_is_no_number_stops_the_training(params: Params, tmp_path: Path) -> None:
    def poison(images: Tensor, label_maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, None]:
        inputs, targets, _ = prepare(images, label_maps, generator)
        return inputs * float("nan"), targets, None

    trainer = make_trainer(params)
    with pytest.raises(InputError, match=r"loss became nan .*train\.lr"):
        train_model(
            trainer, lambda step: make_batches(params.train, step), poison, Checkpoint(tmp_path), no_watch, 1e-9, "test"
        )


def test_center_crop_takes_the_middle() -> None:
    maps = torch.arange(36).view(1, 6, 6)
    assert center_crop(maps, torch.zeros(1, 1, 2, 4)).tolist() == [[[13, 14, 15, 16], [19, 20, 21, 22]]]


def test_weights_of_pixels_reach_the_loss(params: Params) -> None:
    loss = LossParams.model_validate({**params.loss.model_dump(), "bce": 1.0, "dice": 0.0, "distance": 0.0})

    def weigh(weight: float) -> float:
        trainer = Trainer(make_trainer(params).model, params.train, loss, torch.device("cpu"))

        def weighted(images: Tensor, label_maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            inputs, targets, _ = prepare(images, label_maps, generator)
            return inputs, targets, torch.full_like(targets[:, :1], weight)

        trainer.take_step(next(make_batches(params.train, 0)), weighted)
        trainer.step = params.train.steps_per_epoch
        trainer.close_epoch({})
        return trainer.history[0]["bce"]

    assert weigh(2.0) == pytest.approx(2 * weigh(1.0), rel=1e-5)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    (tmp_path / "newest.pt").write_bytes(b"half a checkpoint")
    assert checkpoint.load(torch.device("cpu")) == {"step": 1}
    assert (tmp_path / "newest.damaged").exists()
    assert Checkpoint(tmp_path / "empty").load(torch.device("cpu")) is None


def test_a_folder_is_held_by_one_process_only(tmp_path: Path) -> None:
    held = locked_folder(tmp_path / "fold")
    with held, pytest.raises(InputError, match="another process"):
        locked_folder(tmp_path / "fold").__enter__()
    with locked_folder(tmp_path / "fold"):
        pass


def test_fingerprints_differ_where_anything_differs() -> None:
    parts = {"params": {"lr": 0.1}, "images": "abc"}
    assert fingerprint(parts) == fingerprint({"images": "abc", "params": {"lr": 0.1}})
    assert fingerprint(parts) != fingerprint({**parts, "params": {"lr": 0.2}})
