"""Ways to upsample: transposed convolution, and nearest, bilinear or bicubic interpolation with a 1x1 convolution.

`make study-upsampling` trains the vanilla U-Net four times on the same folds, seeds and batches of stage1_train, and
writes to `results/`: upsampling.csv (scores, each with its paired difference from the paper's transposed convolution,
parameters, time of a step, and how much of a checkerboard there is) and upsampling.png (the checkerboard itself).

The checkerboard is the share of the spectral energy of the decoder's output at the stride's frequencies, for a smooth
input that has none there: the multiples of 1/2 cycle per pixel for the last doubling, of 1/16 for all four of them.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pipeline.experiments.statistics import bootstrap_interval, paired_bootstrap
from pipeline.params import Params
from pipeline.stages.train import load_batches, make_preparation, make_trainer
from pipeline.studies.study import (
    Data,
    choose_scores,
    compose,
    count_images,
    keep_figure,
    keep_table,
    load_data,
    parse_arguments,
    train_network,
)
from pipeline.unet.model import NormalizedUNet, build_model
from pipeline.unet.runtime import configure_torch

KINDS = ("transposed", "nearest", "bilinear", "bicubic")
REFERENCE = "transposed"
FOLDS = (0, 1, 2)
STEPS = 300
# The smooth input: noise under a Gaussian. At 1/16 cycle per pixel, exp(-2 (pi 24 / 16)^2) of it is left: nothing.
SMOOTH_PX, SMOOTH_SIGMA_PX = 896, 24.0
# What is measured lies in the middle, far from the zeros that padding adds around the image.
WINDOW_PX = 512
# The strides of the last doubling, and of all four.
STRIDES = (2, 16)
# Bins around a frequency that count as it: the window spreads a line over 2, the smooth input modulates it.
_NEAR_BINS = 3


def compose_kind(kind: str, scratch: Path, steps: int, threads: int) -> Params:
    """Return the parameters of one way to upsample."""
    overrides = [
        "data=full", "train=cpu", "unet=vanilla", f"unet.upsampling={kind}", "folds.ids=[0,1,2]", "train.epochs=1",
        f"train.steps_per_epoch={steps}", "train.crop_px=128", "train.start_crop_px=96", "train.tile_px=176",
        f"train.threads={threads}", "train.ema_decay=0.98",
    ]  # fmt: skip
    return compose(scratch, overrides)


def smooth_image() -> Tensor:
    """Return the smooth input (1, 3, S, S) float32 in [0, 1], grey; the same every time."""
    noise = np.random.default_rng(0).standard_normal((SMOOTH_PX, SMOOTH_PX))
    smooth = gaussian_filter(noise, SMOOTH_SIGMA_PX, mode="wrap")
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return torch.from_numpy(smooth.astype(np.float32)).expand(1, 3, -1, -1)


@torch.no_grad()
def decode_smooth(model: NormalizedUNet) -> NDArray[np.float64]:
    """Return the output of the last block of the decoder for the smooth input, its middle: (C, W, W)."""
    outputs: list[Tensor] = []
    *_, last = model.net.get_submodule("expanding").children()
    handle = last.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        model.eval()(smooth_image())
    finally:
        handle.remove()
    first = (SMOOTH_PX - WINDOW_PX) // 2
    return outputs[0][0, :, first : first + WINDOW_PX, first : first + WINDOW_PX].double().numpy()


def stride_energy(maps: NDArray[np.float64], stride: int) -> float:
    """Return the share of spectral energy at the multiples of 1/stride cycles per pixel, the mean over maps.

    Args:
        maps: (C, W, W), W a multiple of `stride`. Each is taken without its mean, under a Hann window. Constant maps,
            such as a ReLU leaves of dead channels, have no energy and are left out.
        stride: of the lattice; its frequencies are those along both axes, but for 0 along both.

    Returns:
        In [0, 1]; 0 where every map is constant. For white noise it is the share of bins counted: for W = 512 about
        0.0006 with stride 2 and 0.05 with stride 16.
    """
    size = maps.shape[-1]
    window = np.hanning(size + 1)[:size]
    energy = np.abs(np.fft.fft2((maps - maps.mean(axis=(1, 2), keepdims=True)) * np.outer(window, window))) ** 2
    bins = np.arange(size) % (size // stride)
    is_near = np.minimum(bins, size // stride - bins) <= _NEAR_BINS
    low = np.minimum(np.arange(size), size - np.arange(size)) <= _NEAR_BINS
    counted = np.outer(is_near, is_near) & ~np.outer(low, low)
    total = energy.sum(axis=(1, 2))
    alive = total > 1e-12 * max(1.0, float(total.max(initial=0)))
    return float((energy[:, counted].sum(axis=1)[alive] / total[alive]).mean()) if alive.any() else 0.0


def time_steps(models: dict[str, Params], data: Data, rounds: int = 7) -> dict[str, float]:
    """Return the seconds of a training step of every kind: the median of rounds in which they take turns."""
    takers: dict[str, Callable[[], None]] = {}
    for kind, params in models.items():
        configure_torch(params.train.threads)
        trainer, prepare = make_trainer(0, params), make_preparation(params)
        batches = load_batches(data.pack, data.split(0)[0], trainer, params, trainer.steps // 2)
        takers[kind] = lambda t=trainer, b=batches, p=prepare: t.take_step(next(b), p)  # type: ignore[misc]
        trainer.model.train()
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    for turn in range(rounds + 1):
        for kind, take in takers.items():
            begin = time.perf_counter()
            take()
            if turn:  # the first round warms up
                seconds[kind].append(time.perf_counter() - begin)
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def score_kind(kind: str, params: Params, data: Data, scratch: Path) -> tuple[pd.DataFrame, list[NormalizedUNet]]:
    """Return image_id, group, fold and ap of all images by networks of one kind, and these networks."""
    models = [train_network(f"{kind}, fold {k}", params, data, data.split(k)[0], k, scratch) for k in FOLDS]
    held_out = pd.concat([data.split(k)[1] for k in FOLDS])
    path = scratch / f"upsampling-{kind}-{params.train.steps_per_epoch}.csv"
    if not path.is_file():
        counts = [
            m
            for k, model in zip(FOLDS, models, strict=True)
            for m in count_images(model, data, data.split(k)[1], params)
        ]
        ap = choose_scores(counts, held_out["fold"].to_numpy())
        keep_table(path, held_out[["image_id", "group", "fold"]].assign(ap=ap))
    return pd.read_csv(path, dtype={"image_id": str, "group": str}), models


def draw(maps: dict[str, list[NDArray[np.float64]]], shares: dict[str, list[float]]) -> Figure:
    """Draw, for each kind, a part of the decoder's output before and after training, in the channel that shows most."""
    figure = Figure(figsize=(10, 5.4), layout="constrained", dpi=90)
    axes = figure.subplots(2, len(maps))
    for column, (kind, pair) in enumerate(maps.items()):
        for row, when in enumerate(("before", "after")):
            channel = max(pair[row], key=lambda one: stride_energy(one[None], STRIDES[-1]) if np.ptp(one) else 0.0)
            axes[row, column].imshow(channel[:96, :96], cmap="gray", interpolation="nearest")
            axes[row, column].set_title(f"{kind}, {when} training\n{100 * shares[kind][row]:.2f} % at 1/16", fontsize=9)
            axes[row, column].set_axis_off()
    return figure


def main() -> None:
    arguments = parse_arguments(__doc__ or "")
    scratch, steps = arguments.scratch, arguments.steps or STEPS
    kinds = {kind: compose_kind(kind, scratch, steps, arguments.threads) for kind in KINDS}
    data = load_data(arguments.data, scratch, kinds[REFERENCE])
    scored = {kind: score_kind(kind, params, data, scratch) for kind, params in kinds.items()}
    step_s = time_steps(kinds, data)
    reference, rows, maps, shares = scored[REFERENCE][0], [], {}, {}
    for kind, params in kinds.items():
        scores, models = scored[kind]
        evaluate = params.evaluate
        low, high = bootstrap_interval(scores["ap"], scores["group"], evaluate.bootstrap, evaluate.seed)
        row = {"upsampling": kind, "ap": scores["ap"].mean(), "low": low, "high": high}
        row |= {f"ap_fold{k}": scores.loc[scores["fold"] == k, "ap"].mean() for k in FOLDS}
        paired = paired_bootstrap(reference["ap"], scores["ap"], scores["group"], evaluate.bootstrap, evaluate.seed)
        row |= dict(zip(("difference", "difference_low", "difference_high"), paired, strict=True))
        before = []
        for k in FOLDS:
            torch.manual_seed(params.train.seed + 1000 * k)  # as `make_trainer` draws them
            before.append(decode_smooth(build_model(params.unet)))
        after = [decode_smooth(model) for model in models]
        for stride in STRIDES:
            row[f"energy{stride}_before"] = statistics.mean(stride_energy(one, stride) for one in before)
            row[f"energy{stride}_after"] = statistics.mean(stride_energy(one, stride) for one in after)
        row |= {"parameters": sum(p.numel() for p in models[0].parameters()), "step_s": step_s[kind], "steps": steps}
        maps[kind] = [before[0], after[0]]
        shares[kind] = [row[f"energy{STRIDES[-1]}_before"], row[f"energy{STRIDES[-1]}_after"]]
        rows.append(row)
    table = pd.DataFrame(rows)
    keep_table(arguments.out / "upsampling.csv", table.round(5))
    keep_figure(arguments.out / "upsampling.png", draw(maps, shares))
    print(table.round(4).T.to_string(header=False))


if __name__ == "__main__":
    main()
