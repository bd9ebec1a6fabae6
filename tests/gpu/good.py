"""Are the networks good: all folds trained by `train=gpu` in the time that is left, for a CPU to go on with.

What is left in the run's folder is what the stages `train` and `size` write, and the params.yaml of the run.
"""

import time
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from pipeline.files import write_json, write_text
from pipeline.folds.watch import HeldOutWatch
from pipeline.params import Params, load_params
from pipeline.stages import size as size_stage
from pipeline.stages import train as train_stage
from pipeline.unet.size import extract_features
from pipeline.unet.weights import halve_weights
from tests.benchmarks.loops import begin_steps
from tests.gpu.results import Questions, Table
from tests.gpu.setting import PARAMS, Setting, begin_timed, small_crops, time_on, timed

_LARGEST_MB = 12.0
_LOOKS, _SHOWN = 4, 32  # at the held-out fold: how often, and at how many images
_RESERVE_S = 20.0  # for what was not foreseen


def questions(setting: Setting) -> Questions:
    """Yield what is asked: all networks first, since a CPU can fit the readers of sizes too."""
    run = _Run(setting)
    yield "how many epochs there is time for", run.fit_schedule
    for fold in setting.params.folds.ids:
        yield f"fold {fold}", partial(run.train, fold)
    for fold in setting.params.folds.ids:
        yield f"sizes, fold {fold}", partial(run.fit_sizes, fold)


def choose_epochs(left_s: float, folds: int, other_s: float, epoch_s: float, most: int) -> int:
    """Return how many epochs each of some folds has time for, from 2 to `most`.

    Args:
        left_s: the time for all of it.
        folds: how many there are, one after another.
        other_s: what a fold takes beside its epochs.
        epoch_s: what an epoch takes.
        most: the epochs of a whole training.
    """
    return max(2, min(most, int((left_s - _RESERVE_S - folds * other_s) / (folds * epoch_s))))


class _Run:
    """The folds of one run, with a schedule that all of them have time for."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._run, self._folds = setting, setting.run, setting.run / "folds.csv"
        self._params: Params | None = None

    def fit_schedule(self) -> Table:
        """Time everything that a fold takes, and choose the number of epochs."""
        setting, device, params = self._setting, self._setting.device, timed(self._setting)
        count, train, size = setting.steps(20), setting.params.train, params.size
        begin = time.monotonic()
        trainer, prepare, batches = begin_steps(setting.folded.outside(0), params)
        trainer.take_step(next(batches), prepare)
        setup_s = time.monotonic() - begin
        steps_s = []
        for loop in ((trainer, prepare, batches), begin_timed(setting, **small_crops(setting))):

            def take_steps(loop: tuple = loop) -> None:
                for _ in range(count):
                    loop[0].take_step(next(loop[2]), loop[1])

            time_on(device, take_steps)  # a warm-up
            steps_s.append(time_on(device, take_steps) / count)
        shown = min(_SHOWN, params.housekeeping.score_images)
        often = params.housekeeping.model_copy(update={"score_every_epochs": 1, "score_images": shown})
        watch = HeldOutWatch(setting.folded.inside(0), params.recipe, params.predict, params.decode, often)
        look_s = time_on(device, lambda: watch(trainer.ema, train.steps_per_epoch))
        split = setting.split
        read = [split.image(image_id) for image_id in split.image_ids[:: max(1, len(split) // 24)]]

        def read_sizes() -> None:
            for image in read:
                extract_features(trainer.ema, image, 1.0, size.window_px, trainer.runtime)

        sizes_s = time_on(device, read_sizes) / len(read) * 2 * size.looks * len(split)  # in two colours each
        other_s, epoch_s = setup_s + _LOOKS * look_s + sizes_s, sum(steps_s) / 2 * train.steps_per_epoch
        epochs = choose_epochs(setting.seconds_left, len(params.folds.ids), other_s, epoch_s, train.epochs)
        self._params = setting.changed(
            train__epochs=epochs,
            housekeeping__score_every_epochs=-(-epochs // _LOOKS),
            housekeeping__score_images=shown,
        )
        # Whoever goes on with the run has another number of cores.
        written = self._params.model_copy(update={"housekeeping": load_params(PARAMS).housekeeping})
        text = yaml.safe_dump(written.model_dump(mode="json"), sort_keys=False)
        write_text(self._run / "params.yaml", text)
        rows = [
            ["begin a fold", f"{setup_s:.1f} s"],
            ["a step of large crops, of small ones", ", ".join(f"{1e3 * seconds:.1f} ms" for seconds in steps_s)],
            [f"a look at {shown} held-out images", f"{look_s:.1f} s"],
            ["read sizes for a fold", f"{sizes_s:.1f} s"],
            ["epochs", f"{epochs} of {train.epochs}, each {train.steps_per_epoch} steps of {train.batch} crops"],
        ]
        return Table("How many epochs there is time for", ["what", "takes"], rows, data={"epochs": epochs})

    def _own(self, kind: str) -> Path:
        """Return the folder of what belongs to the one member."""
        return self._run / kind / "main"

    def train(self, fold: int) -> Table:
        """Train a fold, halve its weights, and note its curve."""
        params, setting = self._params, self._setting
        if params is None:
            raise RuntimeError("no schedule was found")
        weights, history = self._own("weights") / f"{fold}.safetensors", self._own("history") / f"{fold}.csv"
        resume = setting.scratch / "resume"
        noted = train_stage.main(setting.prepared, self._folds, fold, weights, history, resume, params)
        halve_weights(weights)
        write_json(self._run / "journal" / f"train.main-{fold}.json", noted)
        looks = pd.read_csv(history).assign(seconds=noted["epoch_seconds"])[["seconds", "val_map"]].dropna()
        curve = looks.round(4).to_numpy().tolist()
        megabytes = weights.stat().st_size / 1e6
        missed = [f"fold {fold}: weights of {megabytes:.1f} MB, more than {_LARGEST_MB:.0f}"]
        rows = [[f"{seconds:.0f} s", f"{score:.3f}"] for seconds, score in curve]
        note = f"Weights of {megabytes:.1f} MB. mAP with one view, true sizes and a decoding that was not searched."
        data = {"curve": curve, "seconds": noted["seconds"]}
        header = ["training", "held-out mAP"]
        return Table(f"Fold {fold}", header, rows, missed if megabytes > _LARGEST_MB else [], note, data)

    def fit_sizes(self, fold: int) -> Table:
        """Fit the reader of sizes of a fold, where there is time."""
        setting, out = self._setting, self._own("sizes") / f"{fold}.safetensors"
        if self._params is None or setting.seconds_left < 0:
            note = "No time left: `dvc repro` fits it from the weights."
            return Table(f"Sizes, fold {fold}", [], [], note=note)
        size_stage.main(setting.prepared, self._folds, self._own("weights"), fold, out, self._params)
        rows = [[out.name, f"{out.stat().st_size / 1e3:.1f} kB"]]
        return Table(f"Sizes, fold {fold}", ["reader", "size"], rows)
