"""What the parts of `make gpu` work with: the device, the parameters, the images and their folds, and the time left."""

import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.folds import training
from pipeline.folds.table import FoldedSplit, open_folded
from pipeline.images.dataset import TrainingImages
from pipeline.images.prepare import prepare_split
from pipeline.images.resident import ResidentImages
from pipeline.images.splits import PreparedSplit
from pipeline.params import Params, load_params
from pipeline.stages import folds as folds_stage
from pipeline.unet.runtime import start_runtime
from pipeline.unet.training import Batch, PrepareBatch, Trainer, phases_of
from tests.benchmarks.loops import begin_steps

ROOT = Path(__file__).resolve().parents[2]
PARAMS = Path(__file__).with_name("params.yaml")  # data=full train=gpu, by `make params`: to compose them takes DVC
PACK = ROOT / "data" / "packed" / "train.zip"
SAMPLE = "data/sample"

# Sizes with which every part runs to its end on two cores in a minute. They measure nothing.
_TINY: dict[str, dict[str, Any]] = {
    "folds": {"ids": [0, 1], "tries": 1},
    "unet": {"encoder": "tu-mobilenetv3_small_050", "weights": None, "decoder_channels": [16, 8, 8, 8]},
    "train": {
        "epochs": 2, "steps_per_epoch": 2, "batch": 2, "tile_px": 80, "crop_px": 64, "start_crop_px": 64,
    },
    "runtime": {"threads": 1},
    "size": {"looks": 2, "window_px": 64},
    "housekeeping": {"workers": 1, "loader_workers": 0, "score_images": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a part is given.

    Attributes:
        device: that everything runs on.
        params: `train=gpu` on that device; its `data` is what the images were read from.
        tiny: sizes are so small that nothing is measured.
        scratch: a folder to write to.
        deadline: of the whole command, on the monotonic clock.
    """

    device: torch.device
    params: Params
    tiny: bool
    scratch: Path
    deadline: float

    @property
    def prepared(self) -> Path:
        """The prepared training images."""
        return self.scratch / "prepared"

    @property
    def run(self) -> Path:
        """What `good` trains, laid out as `folds/` has it."""
        return self.scratch / "run"

    @property
    def split(self) -> PreparedSplit:
        """All training images."""
        return PreparedSplit.open(self.prepared)

    @property
    def folded(self) -> FoldedSplit:
        """All training images and their folds."""
        return open_folded(self.prepared, self.run / "folds.csv", self.params.folds.ids)

    @property
    def seconds_left(self) -> float:
        """How long the command may still run."""
        return self.deadline - time.monotonic()

    def steps(self, count: int) -> int:
        """Return how many steps a timed run takes: `count`, or 2 where nothing is measured."""
        return 2 if self.tiny else count

    def changed(self, **changes: Any) -> Params:
        """Return the parameters with some values changed, each as `section__name`."""
        return change(self.params, changes)


def change(params: Params, changes: dict[str, Any]) -> Params:
    """Return `params` with some values changed, each as `section__name`, and checked again."""
    content = params.model_dump()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section][name] = value
    return Params.model_validate(content)


def begin_timed(setting: Setting, **changes: Any) -> tuple[Trainer, PrepareBatch, Iterator[Batch]]:
    """Return what timed steps take, of crops of one size and a schedule that does not end: as `begin_steps` does.

    The images are brought to the device once for all.
    """
    params = timed(setting, **changes)
    return begin_steps(setting.split, params, find_resident(setting.prepared, setting.device))


def timed(setting: Setting, **changes: Any) -> Params:
    """Return the parameters of timed steps: crops of one size, and a schedule that does not end."""
    usual = {"train__start_crop_px": setting.params.train.crop_px, "train__epochs": 10_000}
    return setting.changed(**(usual | changes))


def small_crops(setting: Setting) -> dict[str, int]:
    """Return what is changed of the parameters for steps of the first half alone."""
    first = phases_of(setting.params.train)[0]
    return {
        "train__start_crop_px": first.crop_px, "train__crop_px": first.crop_px, "train__tile_px": first.tile_px,
    }  # fmt: skip


@cache
def find_resident(prepared: Path, device: torch.device) -> ResidentImages | None:
    """Return all training images on the device; None where they do not fit."""
    params = load_params(PARAMS)
    images = TrainingImages(PreparedSplit.open(prepared), params.contrast, params.size, params.train.balance)
    return ResidentImages(images, device) if training.fits_on(device, images.pixels) else None


def make_setting(device: str, tiny: bool, scratch: Path, seconds: float) -> Setting:
    """Prepare the images and their folds, of the packed training set where it is there, else of the sample.

    Raises:
        InputError: the device is not there, or the images cannot be read.
    """
    deadline = time.monotonic() + seconds
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device; `--device cpu --tiny` tries all of it without one")
    # `auto` is CUDA then, and a CPU can go on with the parameters as they are.
    params = change(load_params(PARAMS), {"runtime__device": "auto" if device == "cuda" else device})
    params = change(params, {"housekeeping__workers": count_cores()})
    if tiny:
        params = change(
            params, {f"{section}__{key}": value for section, keys in _TINY.items() for key, value in keys.items()}
        )
    is_packed = PACK.is_file() and not tiny
    if not is_packed:
        params = change(params, {"data__dir": SAMPLE})
    setting = Setting(start_runtime(params.runtime).device, params, tiny, scratch, deadline)
    sources, archives = params.data.sources, ROOT / SAMPLE
    if is_packed:
        sources = {
            name: source.model_copy(update={"archive": PACK.name, "layout": "packed"})
            for name, source in sources.items()
        }
        archives = PACK.parent
    for folder in (setting.prepared, setting.run):
        folder.mkdir(parents=True, exist_ok=True)
    prepare_split(sources, archives, setting.prepared, True, params.data, params.housekeeping)
    folds_stage.main(setting.prepared, setting.run, params)
    return setting


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_on(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes, to the end of all that it gave the device to do."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


@contextmanager
def most_memory(device: torch.device) -> Iterator[list[float]]:
    """Yield a list that gets the most GiB by which the device's memory grew within the block; nothing on a CPU."""
    found: list[float] = []
    if device.type != "cuda":
        yield found
        return
    gc.collect()  # a network whose forward pass was captured holds itself
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    # What is reserved: the pools of CUDA graphs are no allocation of a replay.
    before = torch.cuda.memory_reserved(device)
    yield found
    found.append((torch.cuda.max_memory_reserved(device) - before) / 2**30)


@contextmanager
def any_algorithms() -> Iterator[None]:
    """Let CUDA choose its algorithms by timing them, deterministic or not, as it does if nobody asks otherwise."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)
        torch.backends.cudnn.benchmark = False


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_device(setting: Setting) -> str:
    """Return device, versions and date in one line, and whether anything was measured."""
    device = setting.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    driver = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "numpy", "segmentation-models-pytorch", "timm")
    )
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    tiny = "; tiny sizes, which measure nothing" if setting.tiny else ""
    return f"{name}{driver}, {count_cores()} cores; Python {platform.python_version()}, {packages}; {when}{tiny}"
