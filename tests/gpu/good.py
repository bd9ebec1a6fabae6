"""Are the networks good: all folds trained by `train=gpu` in the time that is left, for a CPU to go on with.

What is left in the run's folder is what the stages `train` and `size` write, and the params.yaml of the run.
"""

import time
from functools import partial

import pandas as pd
import yaml

from pipeline.files import write_json, write_text
from pipeline.params import Params, load_params
from pipeline.stages import size as size_stage
from pipeline.stages import train as train_stage
from pipeline.unet.size import extract_features
from pipeline.unet.weights import halve_weights
from tests.gpu.results import Questions, Table
from tests.gpu.setting import PARAMS, Setting, begin_timed, time_on

_LARGEST_MB = 12.0
_LOOKS, _SHOWN = 5, 50  # at the held-out fold: how often, and at how many images
# The share of the time for looks at the held-out fold, and for what was not foreseen.
_RESERVE = 0.25


def questions(setting: Setting) -> Questions:
    """Yield what is asked."""
    yield "all folds in the time that is left", partial(train_all, setting)


def train_all(setting: Setting) -> Table:
    """Train every fold, halve its weights, fit its size reader, and note its curve."""
    params = fit_schedule(setting)
    run, folds = setting.run, setting.run / "folds.csv"
    # Whoever goes on with the run has another number of cores.
    written = params.model_copy(update={"housekeeping": load_params(PARAMS).housekeeping})
    write_text(run / "params.yaml", yaml.safe_dump(written.model_dump(mode="json"), sort_keys=False))
    rows, missed, curves = [], [], {}
    for fold in params.folds.ids:
        begin = time.monotonic()
        weights, history = run / "weights" / f"{fold}.safetensors", run / "history" / f"{fold}.csv"
        noted = train_stage.main(setting.prepared, folds, fold, weights, history, setting.scratch / "resume", params)
        halve_weights(weights)
        reader = run / "sizes" / f"{fold}.safetensors"
        size_stage.main(setting.prepared, folds, run / "weights", fold, reader, params)
        write_json(run / "journal" / f"train.{fold}.json", noted)
        looks = pd.read_csv(history)
        looks = looks.assign(seconds=noted["epoch_seconds"])[["seconds", "val_map"]].dropna()
        curves[fold] = looks.round(4).to_numpy().tolist()
        megabytes = max(path.stat().st_size for path in (weights, reader)) / 1e6
        if megabytes > _LARGEST_MB:
            missed.append(f"fold {fold}: a file of {megabytes:.1f} MB, more than {_LARGEST_MB:.0f}")
        last = f"{looks['val_map'].iloc[-1]:.3f}" if len(looks) else ""
        curve = ", ".join(f"{seconds:.0f} s: {score:.3f}" for seconds, score in curves[fold])
        rows.append([str(fold), last, curve, f"{megabytes:.1f} MB", f"{time.monotonic() - begin:.0f} s"])
    steps = params.train.epochs * params.train.steps_per_epoch
    return Table(
        f"All folds: {params.train.epochs} epochs, {steps} steps of {params.train.batch} crops",
        ["fold", "last mAP", "held-out mAP while training", "weights", "all of it"],
        rows,
        missed,
        f"mAP of {params.housekeeping.score_images} held-out images at most, with one view, their true sizes and a "
        "decoding that was not searched; the cross-validation is what the stages make of the weights.",
        {"epochs": params.train.epochs, "curves": curves},
    )


def fit_schedule(setting: Setting) -> Params:
    """Return the parameters with as many epochs as the folds have time for, at most those of `train=gpu`."""
    trainer, prepare, batches = begin_timed(setting)
    count, train, size = setting.steps(20), setting.params.train, setting.params.size

    def take_steps() -> None:
        for _ in range(count):
            trainer.take_step(next(batches), prepare)

    time_on(setting.device, take_steps)  # a warm-up
    step_s = time_on(setting.device, take_steps) / count
    trainer.model.eval()
    split = setting.split
    looked_at = [split.image(image_id) for image_id in split.image_ids[::100]]

    def look() -> None:
        for image in looked_at:
            extract_features(trainer.model, image, 1.0, size.window_px, trainer.runtime)

    time_on(setting.device, look)
    look_s = time_on(setting.device, look) / len(looked_at)
    folds = len(setting.params.folds.ids)
    # Each image is looked at by all readers but one.
    sizes_s = look_s * size.looks * len(split) * (folds - 1)
    seconds = (setting.seconds_left - sizes_s) * (1 - _RESERVE) / folds
    epochs = max(2, min(train.epochs, int(seconds / (step_s * train.steps_per_epoch))))
    return setting.changed(
        train__epochs=epochs,
        housekeeping__score_every_epochs=max(1, -(-epochs // _LOOKS)),
        housekeeping__score_images=min(_SHOWN, setting.params.housekeeping.score_images),
    )
