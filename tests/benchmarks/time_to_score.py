"""Score of a held-out fold against seconds of training, for some settings of the default network.

`python -m tests.benchmarks.time_to_score train` trains each setting for about the same time on stage1_train without
fold 0 of 5 and scores the averaged weights on the way (`HeldOutWatch`, one view, decoding unsearched); it resumes, and
settings that are done stay done. `time` measures the seconds of a step of each setting, in turns on a quiet machine:
the curves' seconds are steps times that, so what else ran while they trained does not count. `draw` makes
time_to_score.csv and .svg of both, and a table of results.md. Fold 0's score chose the defaults of `train=cpu` and
`train=gpu`; the cross-validation of a run trained with them is optimistic by as much as such a choice of few can be.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.utils.hydra import compose_and_dump
from matplotlib.figure import Figure

from pipeline.experiments.watch import HeldOutWatch
from pipeline.images.folds import read_folds
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.params import Params, load_params
from pipeline.stages import folds as folds_stage
from pipeline.stages.train import load_batches, make_preparation, make_trainer
from pipeline.unet.checkpoint import Checkpoint, fingerprint
from pipeline.unet.runtime import configure_torch
from pipeline.unet.training import train_model
from tests.benchmarks.__main__ import SCRATCH, TIME_TO_SCORE, keep, prepare_data
from tests.benchmarks.harness import ROOT, Report, Table, describe_machine, seconds_of

BUDGET_S = 210  # of training, for each setting, by _ROUGH_S
LOOKS = 8  # scores on the way
FOLD = 0

# What differs from train=cpu as it was before this study: Lite0, 16 crops of 192 px, lr 0.002, EMA
# 0.995, nuclei at their native size.
BASE = {
    "train.batch": 16, "train.crop_px": 192, "train.start_crop_px": 192, "train.tile_px": 256, "train.lr": 0.002,
    "train.ema_decay": 0.995, "train.object_diameter_px": 0.0, "augment.log2_scale": 0.6,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "base": {},
    "crop 128, batch 32": {"train.crop_px": 128, "train.start_crop_px": 128, "train.tile_px": 176, "train.batch": 32},
    "crop 256, batch 8": {"train.crop_px": 256, "train.start_crop_px": 256, "train.tile_px": 336, "train.batch": 8},
    "batch 8": {"train.batch": 8},
    "lr 0.004": {"train.lr": 0.004},
    "width x 1/2": {"unet.decoder_channels": (64, 32, 24, 16, 8)},
    "crop 96 for half the steps": {"train.start_crop_px": 96},
    "no EMA": {"train.ema_decay": 0.0},
    "random weights": {"unet.weights": "none"},
}
# s per step on two cores, to give each setting about the same time; `time` measures what the curves show.
_ROUGH_S = {
    "base": 0.45, "crop 128, batch 32": 0.42, "crop 256, batch 8": 0.40, "batch 8": 0.23, "lr 0.004": 0.45,
    "width x 1/2": 0.36, "crop 96 for half the steps": 0.29, "no EMA": 0.45, "random weights": 0.45,
}  # fmt: skip


def compose(name: str, steps: int) -> Params:
    """Return the parameters of a setting: data=full, train=cpu, and what the setting changes."""
    path = SCRATCH / "time_to_score.params.yaml"
    compose_and_dump(path, str(ROOT / "pipeline" / "conf"), None, "config", [], ["data=full", "train=cpu"])
    params = load_params(path)
    changes = BASE | SETTINGS[name]
    changes |= {"train.epochs": LOOKS, "train.steps_per_epoch": max(1, steps // LOOKS)}
    changes |= {"housekeeping.score_every_epochs": 1, "housekeeping.score_images": 40}
    for section in {key.split(".")[0] for key in changes}:
        update = {key.split(".")[1]: value for key, value in changes.items() if key.startswith(section + ".")}
        params = params.model_copy(update={section: getattr(params, section).model_copy(update=update)})
    return Params.model_validate(params.model_dump())


def load_fold(archives: Path) -> tuple[Pack, pd.DataFrame, pd.DataFrame]:
    """Return the pack, the table of what is trained on, and that of the held-out fold."""
    prepared = prepare_data(archives) / "train"
    out = SCRATCH / f"folds-{archives.name}"
    if not (out / "folds.csv").is_file():
        out.mkdir(parents=True, exist_ok=True)
        folds_stage.main(prepared, out, compose("base", LOOKS))
    table, fold_table = read_table(prepared), read_folds(out / "folds.csv")
    is_val = table["image_id"].isin(fold_table.loc[fold_table["fold"] == FOLD, "image_id"])
    return Pack(prepared / "images.npz"), table[~is_val], table[is_val]


def train(archives: Path, names: list[str]) -> None:
    """Train the settings, one after another, and keep each one's history."""
    pack, table, held_out = load_fold(archives)
    for name in names:
        path = history_path(name)
        if path.is_file():
            continue
        params = compose(name, round(BUDGET_S / _ROUGH_S[name]))
        configure_torch(params.train.threads)
        trainer = make_trainer(FOLD, params)
        train_model(
            trainer,
            lambda step, t=trainer, p=params: load_batches(pack, table, t, p, step),  # type: ignore[misc]
            make_preparation(params),
            Checkpoint(path.with_suffix(".checkpoint") / fingerprint({"name": name, "params": params.model_dump()})),
            HeldOutWatch(pack, held_out, params),
            60.0,
            name,
        )
        pd.DataFrame(trainer.history).to_csv(path, index=False)
        print(name, [round(row["val_map"], 3) for row in trainer.history], flush=True)


def time_steps(archives: Path, names: list[str], rounds: int = 7) -> None:
    """Measure the seconds of a step of every setting: the median over rounds, the settings in turns."""
    pack, table, _ = load_fold(archives)
    steppers = {}
    for name in names:
        params = compose(name, 10_000)
        configure_torch(params.train.threads)
        trainer = make_trainer(FOLD, params)
        phases = [0] if params.train.start_crop_px == params.train.crop_px else [0, trainer.steps // 2]
        prepare = make_preparation(params)
        steppers[name] = [(trainer, load_batches(pack, table, trainer, params, at), prepare) for at in phases]
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in steppers[name]] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            for kept, (trainer, source, prepare) in zip(seconds[name], steppers[name], strict=True):
                trainer.model.train()
                trainer.take_step(next(source), prepare)  # caches are another setting's
                taken = seconds_of(lambda t=trainer, s=source, p=prepare: [t.take_step(next(s), p) for _ in range(4)])
                if turn:
                    kept.append(taken / 4)
    medians = {name: [statistics.median(kept) for kept in seconds[name]] for name in names}
    content = {"machine": describe_machine(), "step_s": medians}
    (SCRATCH / "time_to_score.steps.json").write_text(json.dumps(content, indent=1))
    print(json.dumps(content, indent=1))


def draw(names: list[str]) -> None:
    """Write time_to_score.csv and time_to_score.svg, and print the seconds to 90 % of the best final score."""
    timed = json.loads((SCRATCH / "time_to_score.steps.json").read_text())
    tables = []
    for name in names:
        if not history_path(name).is_file():
            continue
        history = pd.read_csv(history_path(name))
        step_s, last = timed["step_s"][name], int(history["step"].iloc[-1])
        # With two phases, each has half of the steps.
        seconds = [
            step * step_s[0] if len(step_s) == 1 or step <= last // 2
            else last // 2 * step_s[0] + (step - last // 2) * step_s[1]
            for step in history["step"]
        ]  # fmt: skip
        tables.append(history[["step", "val_map"]].assign(setting=name, seconds=seconds))
    curves = pd.concat(tables)[["setting", "step", "seconds", "val_map"]].round({"seconds": 1, "val_map": 4})
    here = Path(__file__)
    curves.to_csv(here.with_suffix(".csv"), index=False, lineterminator="\n")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training, two CPU cores", ylabel="mAP of the held-out fold")
    for name, curve in curves.groupby("setting", sort=False):
        axes.plot(curve["seconds"], curve["val_map"], marker="o", markersize=3, label=name)
    axes.legend(fontsize=8), axes.grid(alpha=0.2)
    figure.savefig(here.with_suffix(".svg"), metadata={"Date": None})
    best = curves.groupby("setting")["val_map"].last().max()
    rows = []
    for name, curve in curves.groupby("setting", sort=False):
        reached, last = curve.loc[curve["val_map"] >= 0.9 * best, "seconds"], curve.iloc[-1]
        first = f"{reached.iloc[0]:.0f} s" if len(reached) else "not reached"
        rows.append([str(name), first, f"{last['val_map']:.3f}", f"{last['seconds']:.0f} s"])
    header = ["setting", f"seconds to {0.9 * best:.3f}, 90 % of the best end", "mAP at the end", "seconds to the end"]
    note = (
        "![mAP against seconds](time_to_score.svg)\n\nThe points are in [time_to_score.csv](time_to_score.csv). One "
        "seed and 40 held-out images for each setting: differences of 0.01 are within chance."
    )
    report = Report(tables=[Table("Time to score: fold 0 of 5 of stage1_train", header, rows, note)])
    keep(TIME_TO_SCORE, {**report.as_dict(), "data": "data/dsb2018", "machine": timed["machine"]})


def history_path(name: str) -> Path:
    folder = SCRATCH / "time_to_score"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name.replace(' ', '_').replace('/', '-').replace(',', '')}.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["train", "time", "draw"])
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), help="some of the settings")
    parser.add_argument("--archives", type=Path, default=ROOT / "data" / "dsb2018")
    arguments = parser.parse_args()
    if arguments.action == "train":
        train(arguments.archives, arguments.settings)
    elif arguments.action == "time":
        time_steps(arguments.archives, arguments.settings)
    else:
        draw(arguments.settings)


if __name__ == "__main__":
    main()
