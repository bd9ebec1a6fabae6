"""Score of held-out images against seconds of training: which network, crops and size of nuclei give most, soonest.

Three actions. `python -m pipeline.studies.time_to_score time` measures the seconds of a training step of each setting
by two threads, in turns on a quiet machine. `train` trains each setting for as many steps as fit into the same seconds
by that, so what else ran does not count, on stage1_train without fold 0, and without fold 1, of five; it scores
averaged weights on the way (`HeldOutWatch`, 40 images, one view, decoding unsearched), and at the end all images of
both folds, seen once at their true size, by the one of six decodings that the other fold chose. Settings that have
scores are not trained again. `draw` makes results/time_to_score.csv, of the scores on the way, and .svg, and
results/time_to_score_end.csv, of the scores at the end with their paired differences from `base`; its `as_base_s` says
after how many seconds a setting scored on the way what `base` did at its end.

The folds' scores choose the defaults of `train=cpu` and `train=gpu`; the cross-validation of a run trained with them is
optimistic by as much as such a choice of few can be.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.compose import compose_params
from pipeline.errors import InputError, one_line_errors
from pipeline.experiments.statistics import paired_bootstrap
from pipeline.files import write_text
from pipeline.folds.table import FoldedSplit
from pipeline.folds.training import start_training, train_fold
from pipeline.folds.watch import HeldOutWatch
from pipeline.params import Params
from pipeline.studies.study import (
    RESULTS,
    Network,
    choose_scores,
    count_images,
    keep_figure,
    keep_table,
    load_data,
    make_parser,
)
from pipeline.unet.model import load_model

FOLDS = (0, 1)
BUDGET_S = 150.0  # of a training, by the seconds of its steps
LOOKS = 3  # scores on the way
BASE = "base"
# train=cpu as it was, of reference-2: what the settings change.
BEFORE: dict[str, Any] = {
    "unet.decoder_channels": "[128,64,48,32,16]", "unet.output_stride": 1, "train.crop_px": 192, "train.tile_px": 256,
    "size.object_diameter_px": 28,
}  # fmt: skip
HALF: dict[str, Any] = {"unet.decoder_channels": "[128,64,48,32]", "unet.output_stride": 2}
QUARTER: dict[str, Any] = {"unet.decoder_channels": "[128,64,48]", "unet.output_stride": 4}
SHALLOW_HALF: dict[str, Any] = {"unet.decoder_channels": "[64,48,32]", "unet.output_stride": 2}
NARROW_HALF: dict[str, Any] = {"unet.decoder_channels": "[96,48,32,16]", "unet.output_stride": 2}
CROP_128: dict[str, Any] = {"train.crop_px": 128, "train.tile_px": 176}
CHOSEN = "half, crop 128, diameter 24"  # the default of now
CHANGES: dict[str, dict[str, Any]] = {
    BASE: {},
    "half": HALF,
    "depth 4, half": SHALLOW_HALF,
    "crop 128": CROP_128,
    "half, crop 128": HALF | CROP_128,
    "quarter, crop 128": QUARTER | CROP_128,
    "depth 4, half, crop 128": SHALLOW_HALF | CROP_128,
    "resnet18, half, crop 128": HALF | CROP_128 | {"unet.encoder": "resnet18", "unet.weights": "null"},
    CHOSEN: HALF | CROP_128 | {"size.object_diameter_px": 24},
    "narrow half, crop 128, diameter 24": NARROW_HALF | CROP_128 | {"size.object_diameter_px": 24},
    "half, crop 96, diameter 20": HALF
    | {"size.object_diameter_px": 20, "train.crop_px": 96, "train.start_crop_px": 64, "train.tile_px": 136},
}
SETTINGS = {name: BEFORE | changes for name, changes in CHANGES.items()}


def compose(name: str, steps: int, threads: int = 2) -> Params:
    """Return the parameters of a setting: data=full, train=cpu, what the setting changes, and a study's short looks."""
    changes = SETTINGS[name] | {"train.epochs": LOOKS, "train.steps_per_epoch": max(1, steps // LOOKS)}
    changes |= {"train.ema_decay": 0.995, "runtime.threads": threads}
    changes |= {"housekeeping.score_every_epochs": 1, "housekeeping.score_images": 40}
    return compose_params(["+study=short", "data=full", "train=cpu", *(f"{key}={changes[key]}" for key in changes)])


def time_steps(scratch: Path, data: FoldedSplit, names: list[str], rounds: int = 5) -> None:
    """Measure the seconds of a step of every setting, small crops and large: medians over rounds, settings in turns."""
    steppers = {}
    for name in names:
        params = compose(name, 10_000)
        trainer, feed, prepare = start_training(data.outside(FOLDS[0]), FOLDS[0], params.recipe, params.housekeeping)
        steppers[name] = [(trainer, feed.batches_from(at), prepare) for at in (0, trainer.steps // 2)]
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            for kept, (trainer, source, prepare) in zip(seconds[name], steppers[name], strict=True):
                trainer.model.train()
                trainer.take_step(next(source), prepare)  # caches are another setting's
                begin = time.perf_counter()
                for _ in range(4):
                    trainer.take_step(next(source), prepare)
                if turn:
                    kept.append((time.perf_counter() - begin) / 4)
    medians = {name: [statistics.median(kept) for kept in seconds[name]] for name in names}
    write_text(scratch / "steps.json", json.dumps(read_steps(scratch) | medians, indent=1))
    print(json.dumps(medians, indent=1))


def read_steps(scratch: Path) -> dict[str, list[float]]:
    """Return the seconds of a step of the settings that were timed, of small crops and of large ones."""
    path = scratch / "steps.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def train(scratch: Path, data: FoldedSplit, names: list[str], threads: int) -> None:
    """Train each setting on each fold and keep its history, its weights and, once there are both, its scores.

    Raises:
        InputError: a setting was not timed yet.
    """
    seconds = read_steps(scratch)
    if untimed := [name for name in names if name not in seconds]:
        raise InputError(f"{untimed[0]}: not timed yet; run the action `time` first")
    for name in (each for each in names if not scores_path(scratch, each).is_file()):
        params = compose(name, round(BUDGET_S / statistics.mean(seconds[name])), threads)
        counts, held_out = [], []
        for fold in FOLDS:
            path = history_path(scratch, name, fold)
            split = data.inside(fold)
            watch = HeldOutWatch(split, params.recipe, params.predict, params.decode, params.housekeeping)
            weights, resume = path.with_suffix(".safetensors"), path.with_suffix(".checkpoints")
            learnt = data.outside(fold)
            trainer = train_fold(
                learnt, fold, params.recipe, weights, resume, params.housekeeping, watch=watch, title=f"{name}, {fold}"
            )
            keep_table(path, pd.DataFrame(trainer.history))
            model, metadata = load_model(weights, params.unet)
            counts += count_images(Network(model, metadata["inputs"]), split, params)
            held_out.append(data.images[data.images["fold"] == fold])
        table = pd.concat(held_out)[["image_id", "group", "fold"]]
        table["ap"] = choose_scores(counts, table["fold"].to_numpy())
        keep_table(scores_path(scratch, name), table)
        print(f"{name}: {table.groupby('fold')['ap'].mean().round(4).tolist()}", flush=True)


def draw(scratch: Path) -> None:
    """Write time_to_score.csv, time_to_score.svg and time_to_score_end.csv of the settings that were trained.

    Raises:
        InputError: `base` was not trained yet.
    """
    step_seconds = read_steps(scratch)
    names = [name for name in SETTINGS if scores_path(scratch, name).is_file() and name in step_seconds]
    if BASE not in names:
        raise InputError(f"{scratch}: {BASE!r} was not trained yet; run the actions `time` and `train` first")
    base = pd.read_csv(scores_path(scratch, BASE))
    curves, rows = [], []
    for name in names:
        scores, (small_s, large_s) = pd.read_csv(scores_path(scratch, name)), step_seconds[name]
        histories = pd.concat(pd.read_csv(history_path(scratch, name, fold)) for fold in FOLDS)
        curve = histories.groupby("step", as_index=False)["val_map"].mean()
        last = int(curve["step"].iloc[-1])
        small = curve["step"].clip(upper=last // 2)
        seconds = small * small_s + (curve["step"] - small) * large_s
        curves.append(curve.assign(setting=name, seconds=seconds))
        rows.append({"setting": name, "small_s": small_s, "large_s": large_s, "steps": last, "ap": scores["ap"].mean()})
        rows[-1]["as_base_s"] = seconds_to(curves[-1], float(curves[0]["val_map"].iloc[-1]))
        if name != BASE:
            keys = ("difference", "low", "high")
            rows[-1] |= dict(
                zip(keys, paired_bootstrap(base["ap"], scores["ap"], scores["group"], 2000, 2018), strict=True)
            )
    table = pd.concat(curves)[["setting", "step", "seconds", "val_map"]]
    keep_table(RESULTS / "time_to_score.csv", table.round({"seconds": 1, "val_map": 4}))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training, two CPU cores", ylabel="mAP of two held-out folds")
    for name, curve in table.groupby("setting", sort=False):
        axes.plot(curve["seconds"], curve["val_map"], marker="o", markersize=3, label=name)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)
    keep_figure(RESULTS / "time_to_score.svg", figure)
    end = pd.DataFrame(rows).round({"as_base_s": 0}).round(4)
    keep_table(RESULTS / "time_to_score_end.csv", end)
    print(end.to_string(index=False))


def seconds_to(curve: pd.DataFrame, score: float) -> float:
    """Return after how many seconds a curve (`seconds`, `val_map`) is at a score, in a straight line between points.

    Not a number if it never is.
    """
    seconds, scores = curve["seconds"].to_numpy(), curve["val_map"].to_numpy()
    reached = np.flatnonzero(scores >= score)
    if not len(reached):
        return np.nan
    until = slice(max(0, reached[0] - 1), reached[0] + 1)
    return float(np.interp(score, scores[until], seconds[until]))


def history_path(scratch: Path, name: str, fold: int) -> Path:
    """Return where the scores on the way of a setting and a fold are kept."""
    return scratch / f"{_file_name(name)}.{fold}.csv"


def scores_path(scratch: Path, name: str) -> Path:
    """Return where the scores at the end of a setting are kept, once there are all."""
    return scratch / f"{_file_name(name)}.scores.csv"


def _file_name(setting: str) -> str:
    return setting.replace(" ", "_").replace(",", "")


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("action", choices=["time", "train", "draw"])
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", choices=[*SETTINGS, []], help="that are timed or trained: all"
    )
    arguments = parser.parse_args()
    scratch, names = arguments.scratch / "time_to_score", arguments.settings or list(SETTINGS)
    scratch.mkdir(parents=True, exist_ok=True)
    if arguments.action == "draw":
        draw(scratch)
        return
    data = load_data(arguments.data, scratch, compose(BASE, LOOKS))
    if arguments.action == "time":
        time_steps(scratch, data, names)
    else:
        train(scratch, data, names, arguments.threads)


if __name__ == "__main__":
    with one_line_errors("stopped; run the same command to go on"):
        main()
