"""Score of a held-out fold against seconds of training, for some settings of the default network.

`python -m pipeline.studies.time_to_score train` trains each setting for about the same time on stage1_train without
fold 0 of 5 and scores the averaged weights on the way (`HeldOutWatch`, one view, decoding unsearched); it resumes, and
settings that are done stay done. `time` measures the seconds of a step of each setting, in turns on a quiet machine:
the curves' seconds are steps times that, so what else ran while they trained does not count. `draw` makes
results/time_to_score.csv and .svg of both, and prints a table. Fold 0's score chose the defaults of `train=cpu` and
`train=gpu`; the cross-validation of a run trained with them is optimistic by as much as such a choice of few can be.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pipeline.compose import compose_params
from pipeline.errors import InputError, one_line_errors
from pipeline.files import write_text
from pipeline.folds.table import FoldedSplit
from pipeline.folds.training import start_training, train_fold
from pipeline.folds.watch import HeldOutWatch
from pipeline.params import Params
from pipeline.studies.study import RESULTS, keep_figure, keep_table, load_data, make_plain_parser

SCRATCH = Path(".resume/time_to_score")
STEPS = SCRATCH / "steps.json"
BUDGET_S = 210  # of training, for each setting, by _ROUGH_S
LOOKS = 8  # scores on the way
FOLD = 0

# What differs from train=cpu as it was before this study: Lite0, 16 crops of 192 px, lr 0.002, EMA
# 0.995, nuclei at their native size.
BASE = {
    "train.batch": 16, "train.crop_px": 192, "train.start_crop_px": 192, "train.tile_px": 256, "train.lr": 0.002,
    "train.ema_decay": 0.995, "size.object_diameter_px": 0.0, "augment.effects.zoom.octaves": 0.6,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "base": {},
    "crop 128, batch 32": {"train.crop_px": 128, "train.start_crop_px": 128, "train.tile_px": 176, "train.batch": 32},
    "crop 256, batch 8": {"train.crop_px": 256, "train.start_crop_px": 256, "train.tile_px": 336, "train.batch": 8},
    "batch 8": {"train.batch": 8},
    "lr 0.004": {"train.lr": 0.004},
    "width x 1/2": {"unet.decoder_channels": "[64,32,24,16,8]"},
    "crop 96 for half the steps": {"train.start_crop_px": 96},
    "no EMA": {"train.ema_decay": 0.0},
    "random weights": {"unet.weights": "null"},
}
# s per step on two cores, to give each setting about the same time; `time` measures what the curves show.
_ROUGH_S = {
    "base": 0.45, "crop 128, batch 32": 0.42, "crop 256, batch 8": 0.40, "batch 8": 0.23, "lr 0.004": 0.45,
    "width x 1/2": 0.36, "crop 96 for half the steps": 0.29, "no EMA": 0.45, "random weights": 0.45,
}  # fmt: skip


def compose(name: str, steps: int) -> Params:
    """Return the parameters of a setting: data=full, train=cpu, and what the setting changes."""
    changes = BASE | SETTINGS[name]
    changes |= {"train.epochs": LOOKS, "train.steps_per_epoch": max(1, steps // LOOKS)}
    changes |= {"housekeeping.score_every_epochs": 1, "housekeeping.score_images": 40}
    changes |= {"data.test": "null", "data.solution": "null"}
    return compose_params(["data=full", "train=cpu", *(f"{key}={value}" for key, value in changes.items())])


def train(data: FoldedSplit, names: list[str]) -> None:
    """Train the settings, one after another, and keep each one's history."""
    for name in names:
        path = history_path(name)
        params = compose(name, round(BUDGET_S / _ROUGH_S[name]))
        watch = HeldOutWatch(data.inside(FOLD), params.recipe, params.predict, params.decode, params.housekeeping)
        weights, resume = path.with_suffix(".safetensors"), path.with_suffix(".checkpoints")
        trainer = train_fold(
            data.outside(FOLD), FOLD, params.recipe, weights, resume, params.housekeeping, watch=watch, title=name
        )
        keep_table(path, pd.DataFrame(trainer.history))
        print(name, [round(row["val_map"], 3) for row in trainer.history], flush=True)


def time_steps(data: FoldedSplit, names: list[str], rounds: int = 7) -> None:
    """Measure the seconds of a step of every setting: the median over rounds, the settings in turns."""
    steppers = {}
    for name in names:
        params = compose(name, 10_000)
        recipe = params.recipe
        trainer, feed, prepare = start_training(data.outside(FOLD), FOLD, recipe, params.housekeeping)
        starts = [0] if recipe.train.start_crop_px == recipe.train.crop_px else [0, trainer.steps // 2]
        steppers[name] = [(trainer, feed.batches_from(at), prepare) for at in starts]
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in steppers[name]] for name in names}
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
    write_text(STEPS, json.dumps(read_steps() | medians, indent=1))
    print(json.dumps(medians, indent=1))


def read_steps() -> dict[str, list[float]]:
    """Return the seconds of a step of the settings that were timed: of each phase, where there are two."""
    return json.loads(STEPS.read_text()) if STEPS.is_file() else {}


def draw() -> None:
    """Write time_to_score.csv and time_to_score.svg, and print the seconds to 90 % of the best final score.

    Raises:
        InputError: no setting was trained and timed.
    """
    step_seconds = read_steps()
    names = [name for name in SETTINGS if name in step_seconds and history_path(name).is_file()]
    if not names:
        raise InputError(f"{SCRATCH}: no setting was trained and timed yet; run the actions `train` and `time` first")
    tables = []
    for name in names:
        history = pd.read_csv(history_path(name))
        step_s, last = step_seconds[name], int(history["step"].iloc[-1])
        # With two phases, each has half of the steps.
        seconds = [
            step * step_s[0] if len(step_s) == 1 or step <= last // 2
            else last // 2 * step_s[0] + (step - last // 2) * step_s[1]
            for step in history["step"]
        ]  # fmt: skip
        tables.append(history[["step", "val_map"]].assign(setting=name, seconds=seconds))
    curves = pd.concat(tables)[["setting", "step", "seconds", "val_map"]].round({"seconds": 1, "val_map": 4})
    keep_table(RESULTS / "time_to_score.csv", curves)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training, two CPU cores", ylabel="mAP of the held-out fold")
    for name, curve in curves.groupby("setting", sort=False):
        axes.plot(curve["seconds"], curve["val_map"], marker="o", markersize=3, label=name)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)
    keep_figure(RESULTS / "time_to_score.svg", figure)
    best = curves.groupby("setting")["val_map"].last().max()
    rows = []
    for name, curve in curves.groupby("setting", sort=False):
        reached, last = curve.loc[curve["val_map"] >= 0.9 * best, "seconds"], curve.iloc[-1]
        first = f"{reached.iloc[0]:.0f} s" if len(reached) else "not reached"
        rows.append([str(name), first, f"{last['val_map']:.3f}", f"{last['seconds']:.0f} s"])
    header = ["setting", f"seconds to {0.9 * best:.3f}, 90 % of the best end", "mAP at the end", "seconds to the end"]
    print(pd.DataFrame(rows, columns=header).to_string(index=False))


def history_path(name: str) -> Path:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    return SCRATCH / f"{name.replace(' ', '_').replace('/', '-').replace(',', '')}.csv"


def main() -> None:
    parser = make_plain_parser(__doc__ or "")
    parser.add_argument("action", choices=["train", "time", "draw"])
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", choices=[*SETTINGS, []], help="that are trained or timed: all"
    )
    parser.add_argument("--data", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.action == "draw":
        draw()
        return
    data = load_data(arguments.data, SCRATCH, compose("base", LOOKS))
    (train if arguments.action == "train" else time_steps)(data, arguments.settings or list(SETTINGS))


if __name__ == "__main__":
    with one_line_errors("stopped; run the same command to go on"):
        main()
