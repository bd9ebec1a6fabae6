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
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pipeline.errors import one_line_errors
from pipeline.experiments.statistics import bootstrap_interval, paired_bootstrap
from pipeline.folds.table import FoldedSplit
from pipeline.folds.training import make_trainer, start_training
from pipeline.params import Params
from pipeline.studies.study import (
    Network,
    choose_scores,
    compose,
    count_images,
    keep_figure,
    keep_scores,
    keep_table,
    load_data,
    overrides_of,
    parse_arguments,
    train_network,
)
from pipeline.unet.model import NormalizedUNet

KINDS = ("transposed", "nearest", "bilinear", "bicubic")
REFERENCE = "transposed"
# The smooth input: noise under a Gaussian. At 1/16 cycle per pixel, exp(-2 (pi 24 / 16)^2) of it is left: nothing.
SMOOTH_PX, SMOOTH_SIGMA_PX = 896, 24.0
# What is measured lies in the middle, far from the zeros that padding adds around the image.
WINDOW_PX = 512
# The strides of the last doubling, and of all four.
STRIDES = (2, 16)
# Bins around a frequency that count as it: the window spreads a line over 2, the smooth input modulates it.
_NEAR_BINS = 3


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
        model.eval()(smooth_image().to(next(model.parameters()).device))
    finally:
        handle.remove()
    first = (SMOOTH_PX - WINDOW_PX) // 2
    return outputs[0][0, :, first : first + WINDOW_PX, first : first + WINDOW_PX].double().cpu().numpy()


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


def time_steps(kinds: dict[str, Params], data: FoldedSplit, rounds: int = 7) -> dict[str, float]:
    """Return the seconds of a training step of every kind: the median of rounds in which they take turns."""
    takers: dict[str, Callable[[], None]] = {}
    for kind, params in kinds.items():
        # A schedule of its own: steps of the larger crops, as many as are timed.
        train = params.train.model_copy(update={"steps_per_epoch": 2 * (rounds + 1), "epochs": 1})
        recipe = params.model_copy(update={"train": train}).recipe
        trainer, feed, prepare = start_training(data.outside(0), 0, recipe, params.housekeeping)
        batches = feed.batches_from(trainer.steps // 2)

        def take(trainer=trainer, batches=batches, prepare=prepare):  # type: ignore[no-untyped-def]
            trainer.take_step(next(batches), prepare)
            if trainer.runtime.device.type == "cuda":
                torch.cuda.synchronize()  # a step does not wait for the device

        trainer.model.train()
        takers[kind] = take
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 1):
        for kind, take_step in takers.items():
            begin = time.perf_counter()
            take_step()
            if turn:  # the first round warms up
                seconds[kind].append(time.perf_counter() - begin)
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def train_kind(kind: str, params: Params, data: FoldedSplit, scratch: Path) -> list[Network]:
    """Return the networks of one kind, one for each fold."""
    folds = params.folds.ids
    return [train_network(f"{kind}, fold {k}", params, data.outside(k), k, scratch) for k in folds]


def score_kind(networks: list[Network], params: Params, data: FoldedSplit, scratch: Path) -> pd.DataFrame:
    """Return image_id, group, fold and ap of all images, each by the network and the decoding of other folds."""
    by_fold = [data.images[data.images["fold"] == fold] for fold in params.folds.ids]
    held_out = pd.concat(by_fold)

    def score() -> list[float]:
        pairs = zip(networks, params.folds.ids, strict=True)
        counts = [matches for network, fold in pairs for matches in count_images(network, data.inside(fold), params)]
        return choose_scores(counts, held_out["fold"].to_numpy())

    return keep_scores(networks, params, held_out, scratch, score)


def measure_board(networks: list[Network], params: Params) -> dict[str, Any]:
    """Return `energy<stride>_before` and `_after` training, means over folds, and the maps of the first fold."""
    # As `make_trainer` draws them: the weights that each fold began with.
    before = [decode_smooth(make_trainer(fold, params.recipe).model) for fold in params.folds.ids]
    after = [decode_smooth(network.model) for network in networks]
    board: dict[str, Any] = {"maps": (before[0], after[0])}
    for stride in STRIDES:
        for when, maps in (("before", before), ("after", after)):
            board[f"energy{stride}_{when}"] = statistics.mean(stride_energy(one, stride) for one in maps)
    return board


def draw(boards: dict[str, dict[str, Any]]) -> Figure:
    """Draw, for each kind, a part of the first fold's output before and after training, where most goes on."""
    figure = Figure(figsize=(10, 5.6), layout="constrained", dpi=90)
    axes = figure.subplots(2, len(boards))
    for column, (kind, board) in enumerate(boards.items()):
        for row, when in enumerate(("before", "after")):
            axes[row, column].imshow(find_liveliest(board["maps"][row]), cmap="gray", interpolation="nearest")
            share = board[f"energy{STRIDES[-1]}_{when}"]
            axes[row, column].set_title(f"{kind}, {when} training\n{share:.2%} of the energy", fontsize=9)
            axes[row, column].set_axis_off()
    return figure


def find_liveliest(maps: NDArray[np.float64], side_px: int = 64) -> NDArray[np.float64]:
    """Return the square (S, S) of the highest standard deviation, of all maps (C, W, W) cut into such squares."""
    squares = [
        one[top : top + side_px, left : left + side_px]
        for one in maps
        for top in range(0, maps.shape[1] - side_px + 1, side_px)
        for left in range(0, maps.shape[2] - side_px + 1, side_px)
    ]
    return max(squares, key=np.std)


def main() -> None:
    arguments = parse_arguments(__doc__ or "")
    overrides, scratch = overrides_of(arguments), arguments.scratch
    kinds = {kind: compose("upsampling", [*overrides, f"unet.upsampling={kind}"]) for kind in KINDS}
    data = load_data(arguments.data, scratch, kinds[REFERENCE])
    networks = {kind: train_kind(kind, params, data, scratch) for kind, params in kinds.items()}
    scores = {kind: score_kind(networks[kind], params, data, scratch) for kind, params in kinds.items()}
    boards = {kind: measure_board(networks[kind], params) for kind, params in kinds.items()}
    step_s, rows = time_steps(kinds, data), []
    for kind, params in kinds.items():
        table, evaluate = scores[kind], params.evaluate
        low, high = bootstrap_interval(table["ap"], table["group"], evaluate.bootstrap, evaluate.seed)
        row: dict[str, Any] = {"upsampling": kind, "ap": table["ap"].mean(), "low": low, "high": high}
        row |= {f"ap_fold{fold}": part["ap"].mean() for fold, part in table.groupby("fold")}
        first = scores[REFERENCE]["ap"]
        paired = paired_bootstrap(first, table["ap"], table["group"], evaluate.bootstrap, evaluate.seed)
        row |= dict(zip(("difference", "difference_low", "difference_high"), paired, strict=True))
        row |= {name: value for name, value in boards[kind].items() if name != "maps"}
        row |= {"parameters": sum(p.numel() for p in networks[kind][0].model.parameters()), "step_s": step_s[kind]}
        rows.append(row | {"steps": params.train.steps_per_epoch, "images": len(table)})
    results = pd.DataFrame(rows)
    keep_table(arguments.out / "upsampling.csv", results)
    keep_figure(arguments.out / "upsampling.png", draw(boards))
    print(results.T.to_string(header=False, float_format=lambda value: f"{value:.4g}"))


if __name__ == "__main__":
    with one_line_errors():
        main()
