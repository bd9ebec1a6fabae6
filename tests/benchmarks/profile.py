"""Where a training step and a predicted megapixel go, and what each of the runtime's settings gains."""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from typing import Any
from unittest import mock

import cv2
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pipeline.commands.prediction import describe_run
from pipeline.compose import compose_params
from pipeline.diameter import zooms_to_size
from pipeline.folds import training as folds_training
from pipeline.folds.finder import NucleusFinder, read_decodings
from pipeline.folds.networks import load_models
from pipeline.folds.prediction import predict_at
from pipeline.images import augment
from pipeline.images.contrast import show_images
from pipeline.images.splits import NamedImage
from pipeline.nuclei.decoding import decode_instances
from pipeline.params import Params, load_params
from pipeline.predict import segment
from pipeline.predict.segment import load_segmenter, segment_files
from pipeline.unet import runtime, size, training
from pipeline.unet.ensemble import Ensemble
from pipeline.unet.fusing import fuse_layers
from pipeline.unet.model import build_model
from pipeline.unet.predict import predict_images
from pipeline.unet.runtime import start_runtime
from tests.benchmarks.harness import (
    ROOT,
    Report,
    Setting,
    Table,
    Timing,
    count_megapixels,
    draw_images,
    seconds_of,
    time_pair,
)
from tests.benchmarks.loops import begin_steps, prepare_once
from tests.benchmarks.training import ONE_SIZE, STEPS

# The operators that the profiler names, in the parts of the table; the first match counts.
_OPERATORS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "conv2d", "_convolution", "thnn_conv2d"),
    "batch norm": ("batch_norm",),
    "activations": ("threshold_backward", "hardtanh", "clamp", "relu", "sigmoid"),
    "copies and casts (bf16, float32)": ("copy_", "_to_copy", "contiguous"),
    "upsampling and concatenation": ("upsample", "cat", "pad"),
    "optimiser and averaged weights": ("adamw", "lerp", "foreach", "norm"),
}
ZOOMED_IMAGES = 40


class Stopwatch:
    """Seconds by part, of functions that are wrapped while the `with` block runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrapped(self, name: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return timed

    @contextmanager
    def watch(self, **functions: tuple[Any, str]) -> Iterator[None]:
        """Wrap `owner.attribute` of each name."""
        patches = [
            mock.patch.object(owner, attribute, self.wrapped(name, getattr(owner, attribute)))
            for name, (owner, attribute) in functions.items()
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def training_parts(setting: Setting, params: Params, steps: int) -> tuple[float, dict[str, float]]:
    """Return the s of a step, and of its parts."""
    watch = Stopwatch()
    # Bound when the preparation is made, so it is wrapped before.
    with watch.watch(augmentation=(augment, "augment_batch")):
        trainer, prepare, batches = begin_steps(setting.split, params)
    parts = {
        "targets": (folds_training, "encode_targets"),
        "forward pass": (trainer.model, "forward"),
        "loss": (trainer, "_loss"),
        "backward pass": (torch.Tensor, "backward"),
        "gradient norm": (training, "clip_grad_norm_"),
        "optimiser": (trainer.optimizer, "step"),
        "averaged weights": (trainer, "_average_weights"),
    }
    loader = watch.wrapped("loader", lambda: next(batches))
    with watch.watch(**parts):
        for _ in range(3):
            trainer.take_step(loader(), prepare)
        watch.seconds.clear()
        total = seconds_of(lambda: [trainer.take_step(loader(), prepare) for _ in range(steps)])
    return total / steps, {name: seconds / steps for name, seconds in watch.seconds.items()}


def network_parts(setting: Setting, params: Params, steps: int) -> dict[str, float]:
    """Return the s per step of the operators of a step, summed into _OPERATORS."""
    trainer, prepare, batches = begin_steps(setting.split, params)
    batch = next(batches)
    made = prepare_once(batch, prepare, trainer)
    for _ in range(2):
        trainer.take_step(batch, made)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            trainer.take_step(batch, made)
    sums: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        name = next((part for part, keys in _OPERATORS.items() if any(key in event.key for key in keys)), "the rest")
        sums[name] += event.self_cpu_time_total / 1e6 / steps
    return sums


def shares_table(title: str, total: float, parts: dict[str, float], unit: str, note: str = "") -> Table:
    named = sorted(parts.items(), key=lambda pair: -pair[1])
    if (rest := total - sum(parts.values())) > 0.002 * total:
        named.append(("the rest", rest))
    rows = [[name, f"{1e3 * seconds:.1f} ms", f"{100 * seconds / total:.1f} %"] for name, seconds in named]
    return Table(title, ["part", unit, "share"], [*rows, ["all", f"{1e3 * total:.1f} ms", "100 %"]], note)


def prediction_table(setting: Setting, params: Params) -> Table:
    """The parts of prediction and decoding, per megapixel, of real sizes in the order of the data set."""
    images, where = draw_images(setting.split, 40), start_runtime(params.runtime)
    megapixels = count_megapixels(images)
    one_view = params.predict.model_copy(update={"views": "identity", "scales": (1.0,)})
    trained = load_params(ROOT / "params.yaml")
    models = load_models(ROOT / "folds" / "weights" / trained.member_ids[0], trained.folds.ids[:1], trained.recipe)
    decoding, watch = read_decodings(ROOT / "folds" / "decoding.json")["all"], Stopwatch()

    def run() -> None:
        shown = iter(show_images(images, params.contrast))
        read = watch.wrapped("contrast", lambda: next(shown, None))
        predicted = predict_images(models, iter(read, None), one_view, where)
        decode = watch.wrapped("decoding", decode_instances)
        for _, probabilities, _ in predicted:
            decode(probabilities[0], decoding)

    with watch.watch(network=(Ensemble, "predict")):
        run()
        watch.seconds.clear()
        total = seconds_of(run)
    parts = {name: seconds / megapixels for name, seconds in watch.seconds.items()}
    note = f"One network and view, {len(images)} images, {megapixels:.1f} Mpx; the rest is tiles in and out."
    return shares_table("A predicted megapixel", total / megapixels, parts, "per Mpx", note)


def predict_table(setting: Setting) -> Table:
    """The parts of the command `predict` once it has started, by the trained run, on images of real sizes."""
    trained = load_params(ROOT / "params.yaml")
    where = trained.runtime.model_copy(update={"device": "cpu"})
    segmenter = load_segmenter(describe_run(ROOT / "folds", trained.model_copy(update={"runtime": where})))
    images = [image for image in draw_images(setting.split, 40) if image[1].size <= 3 * trained.select.max_pixels]
    megapixels, watch = count_megapixels(images), Stopwatch()
    folder = setting.scratch / "predict"
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images:
        cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])
    paths = sorted(folder.glob("*.png"))

    def run() -> None:
        for outcome in segment_files(paths, folder / "out", segmenter, trained.housekeeping, lambda *_: None):
            if outcome.fault:
                raise AssertionError(f"{outcome.name}: {outcome.fault}")

    parts = {
        "networks": (Ensemble, "predict"),
        "encoders, for sizes": (size, "pool_features"),
        "second level": (NucleusFinder, "find"),
        "results, written": (segment, "write_nuclei"),
    }
    with watch.watch(**parts):
        run()
        watch.seconds.clear()
        total = seconds_of(run)
    shutil.rmtree(folder)
    shares = {name: seconds / megapixels for name, seconds in watch.seconds.items()}
    note = (
        f"{len(trained.folds.ids)} networks, {len(trained.predict.scales)} zooms, {len(images)} images, "
        f"{megapixels:.1f} Mpx, two cores; the rest is files read, contrast, and tiles in and out."
    )
    return shares_table("A megapixel of `predict`", total / megapixels, shares, "per Mpx", note)


def make_stepper(setting: Setting, params: Params, change: Any = None) -> Any:
    """Return a function that takes `STEPS` training steps, of the network as `change` leaves it."""
    trainer, prepare, batches = begin_steps(setting.split, params)
    if change:
        change(trainer.model)
    return lambda: [trainer.take_step(next(batches), prepare) for _ in range(STEPS)]


def runtime_table(setting: Setting) -> Table:
    """What a step takes without each of the runtime's settings, over what it takes with all of them."""
    rows = []
    usual = compose_params(["train=cpu", "runtime.device=cpu", ONE_SIZE])

    plain = usual.runtime.model_copy(update={"precision": "fp32", "channels_last": False})
    sides = {
        "bf16 and channels_last": make_stepper(setting, usual.model_copy(update={"runtime": plain})),
        "slow depthwise convolutions in float32": make_stepper(setting, usual, plain_depthwise),
    }
    ours = make_stepper(setting, usual)
    timings = {name: (time_pair(ours, theirs, setting.runs), STEPS) for name, theirs in sides.items()}
    timings["freed memory kept"] = time_apart(step_seconds, setting), 1
    timings["compiled convolutions kept, four zooms"] = time_apart(zooms_seconds, setting), 1
    for name, (timing, steps) in timings.items():
        low, high = min(timing.ratios), max(timing.ratios)
        rows.append([name, f"{timing.ratio:.2f}x ({low:.2f} .. {high:.2f})", f"{median(timing.ours) / steps:.3f} s"])
    note = (
        "The time of a step of train=cpu without the setting over that with it; in the last row, of a megapixel that "
        f"one network predicts at four zooms, by {ZOOMED_IMAGES} images after as many others."
    )
    return Table("What the runtime's settings gain", ["setting", "gain", "with all"], rows, note)


def plain_depthwise(model: nn.Module) -> None:
    """Undo `run_slow_depthwise_in_float32`."""
    for module in model.modules():
        if type(module).__name__.startswith("Float32"):
            module.__class__ = type(module).__mro__[2]


def step_seconds(setting: Setting, keep_freed: bool) -> float:
    """Return the seconds of a step of train=cpu in a process that has run nothing else."""
    if not keep_freed:
        runtime._KEEP_FREED.clear()
    params = compose_params(["train=cpu", "runtime.device=cpu", ONE_SIZE])
    steps = make_stepper(setting, params)
    steps()
    return seconds_of(steps) / STEPS


def zooms_seconds(setting: Setting, keep_compiled: bool) -> float:
    """Return the seconds per Mpx of prediction of images seen at their nuclei's size, in a process of its own."""
    if not keep_compiled:
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "1024"  # oneDNN's own
    params = compose_params(["train=cpu", "runtime.device=cpu", "unet.weights=null"])
    on_cpu = start_runtime(params.runtime)
    model = fuse_layers(build_model(params.unet), torch.rand(1, 3, 64, 64))
    images = draw_images(setting.split, 2 * ZOOMED_IMAGES)
    shown = setting.split.select(name for name, _ in images)
    zooms = dict(zip(shown.image_ids, zooms_to_size(shown.diameters_px, params.size), strict=True))

    def run(part: list[NamedImage]) -> None:
        for _ in predict_at([model], part, lambda name, _: float(zooms[name]), params.contrast, params.predict, on_cpu):
            pass

    run(images[:ZOOMED_IMAGES])
    return seconds_of(lambda: run(images[ZOOMED_IMAGES:])) / count_megapixels(images[ZOOMED_IMAGES:])


def time_apart(work: Callable[[Setting, bool], float], setting: Setting, runs: int = 5) -> Timing:
    """Time some work with one of the runtime's settings and without it, each in a process of its own."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(runs):
        for has_setting, kept in seconds.items():
            with get_context("spawn").Pool(1) as pool:
                kept.append(pool.apply(work, (setting, has_setting)))
    return Timing(seconds[True], seconds[False])


def run(setting: Setting) -> Report:
    params = compose_params(["train=cpu", "runtime.device=cpu", ONE_SIZE])
    step, parts = training_parts(setting, params, 12)
    operators = network_parts(setting, params, 6)
    train = params.train
    return Report(
        tables=[
            shares_table(f"A training step: Lite0, {train.batch} crops of {train.crop_px} px", step, parts, "per step"),
            shares_table("Its network, loss and optimiser by operator", sum(operators.values()), operators, "per step"),
            prediction_table(setting, params),
            predict_table(setting),
            runtime_table(setting),
        ]
    )
