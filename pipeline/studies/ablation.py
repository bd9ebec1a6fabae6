"""What each part of the pipeline gives to the score: one lever at a time, on held-out images of a finished run.

`python -m pipeline.studies.ablation [LEVER ...]` compares, lever by lever, two settings on the same images and writes
results/ablation.csv: the mean difference of the images' AP and its 95 % interval, with groups resampled. It needs the
run's folder as `dvc repro` leaves it (its params.yaml, folds/ and data/prepared/). The images are those of fold 0.
Levers of the second level are read from the stored out-of-fold predictions of the run's first member; the others
predict the images anew with the network that never saw them; `trained_at_one_size` trains two short networks.

Every setting is cross-fitted: what decodes an image is chosen on other images of the fold, whose groups are dealt into
five parts. So the second-level model learns from a sixth of the images that it has in the run.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from pipeline.errors import one_line_errors
from pipeline.experiments.statistics import paired_bootstrap
from pipeline.folds.cross_validation import cross_validate
from pipeline.folds.finder import CandidateFinder
from pipeline.folds.networks import load_folds, load_models
from pipeline.folds.prediction import predict_at, predict_estimated, predict_true_size
from pipeline.folds.predictions import Predictions, write_predictions
from pipeline.folds.table import open_folded
from pipeline.folds.training import train_fold
from pipeline.nuclei.metric import average_precision, count_matches
from pipeline.params import Params, load_params
from pipeline.studies.study import RESULTS, make_run_parser
from pipeline.unet.prediction import Prediction
from pipeline.unet.runtime import start_runtime

SCRATCH = Path(".resume/ablation")
FOLD = 0  # of the run, whose images are compared
SHORT_STEPS = 200  # of a network that is trained for a lever
PARTS = 5


@dataclass(frozen=True)
class Setting:
    """One side of a comparison: what differs from the run's params.yaml, and at which zoom images are seen."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    zoom: str = "stored"  # stored (the run's own predictions), estimated, true or native
    trained: bool = False  # train a short network of fold 0 with these changes, instead of the run's


@dataclass(frozen=True)
class Lever:
    """Two settings that are compared."""

    what: str
    without: Setting
    with_it: Setting


_ONE_DECODING = {"select.trees": 0}
ONE_LOOK = {"predict.scales": (1.0,), "predict.views": "identity", **_ONE_DECODING}
SHORT = {"train.start_crop_px": 96, "train.epochs": 5, "train.steps_per_epoch": SHORT_STEPS // 5}


def predicting(zoom: str, **changes: Any) -> Setting:
    return Setting({**ONE_LOOK, **{key.replace("__", "."): value for key, value in changes.items()}}, zoom)


def stored(**changes: Any) -> Setting:
    return Setting({key.replace("__", "."): value for key, value in changes.items()})


# The study began with candidates at four mask thresholds. `thresholds` found that one alone does better, which the
# parameters have since; the other levers are as they were measured.
FOUR = {"select__mask_threshold": (0.5, 0.65, 0.8, 0.9)}

LEVERS = {
    "second_level": Lever(
        "nuclei chosen by the second-level model, against one decoding", stored(select__trees=0), stored(**FOUR)
    ),
    "zooms": Lever("candidates of four zooms, against one", stored(predict__scales=(1.0,), **FOUR), stored(**FOUR)),
    "coarse_zoom": Lever(
        "candidates of half the zoom too, against the other three",
        stored(predict__scales=(0.7, 1.0, 1.4), **FOUR), stored(**FOUR),
    ),
    "thresholds": Lever(
        "candidates of four mask thresholds, against one", stored(select__mask_threshold=(0.65,)), stored(**FOUR)
    ),
    "drop_doubtful": Lever(
        "candidates of little worth dropped, against kept", stored(select__min_worth=0.0, **FOUR), stored(**FOUR)
    ),
    "boundary": Lever(
        "the boundary channel parts seeds, against foreground alone",
        stored(select__trees=0, decode__boundary_weight=(0.0,)), stored(select__trees=0),
    ),
    "high_masks": Lever(
        "mask thresholds up to 0.8 to choose from, against 0.5",
        stored(select__trees=0, decode__mask_threshold=(0.5,)), stored(select__trees=0),
    ),
    "size": Lever(
        "images seen at their estimated size, against their own", predicting("native"), predicting("estimated")
    ),
    "true_size": Lever(
        "images seen at their true size, against the estimate", predicting("estimated"), predicting("true")
    ),
    "flips": Lever(
        "four mirrored views averaged, against one",
        predicting("estimated"), predicting("estimated", predict__views="flips"),
    ),
    "trained_at_one_size": Lever(
        "a short training at one nucleus size, seen at true sizes, against one at native sizes",
        Setting({**ONE_LOOK, **SHORT, "size.object_diameter_px": 0.0}, "native", trained=True),
        Setting({**ONE_LOOK, **SHORT}, "true", trained=True),
    ),
}  # fmt: skip


def change(params: Params, changes: Mapping[str, Any]) -> Params:
    """Return the parameters with some values changed, `section.key` by value."""
    content = params.model_dump()
    for name, value in changes.items():
        section, key = name.split(".")
        if key not in content[section]:
            raise KeyError(name)
        content[section][key] = value
    return Params.model_validate(content)


class Study:
    """A finished run's folder, and the settings that were scored on it."""

    def __init__(self, root: Path) -> None:
        run, self.folds = load_params(root / "params.yaml"), root / "folds"
        self.params = run.of_member(run.member_ids[0])
        self.folded = open_folded(root / "data" / "prepared" / "train", self.folds / "folds.csv", self.params.folds.ids)
        self.inside = self.folded.inside(FOLD)
        self.images = self.folded.images
        self._scored: dict[str, pd.Series] = {}
        SCRATCH.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=SCRATCH)

    def compare(self, name: str) -> dict[str, Any]:
        """Return a lever's row."""
        lever = LEVERS[name]
        first, second = (self.score(setting) for setting in (lever.without, lever.with_it))
        groups = self.images.set_index("image_id").loc[first.index, "group"]
        evaluate = self.params.evaluate
        mean, low, high = paired_bootstrap(first, second.loc[first.index], groups, evaluate.bootstrap, evaluate.seed)
        return {
            "lever": name, "what": lever.what, "images": len(first), "without": first.mean(), "with": second.mean(),
            "difference": mean, "low": low, "high": high,
            "command": f"python -m pipeline.studies.ablation {name}",
        }  # fmt: skip

    def score(self, setting: Setting) -> pd.Series:
        """Return the AP of each image of the fold, by image_id; a setting is scored once."""
        key = json.dumps(dataclasses.asdict(setting), default=str, sort_keys=True)
        if key not in self._scored:
            self._scored[key] = self._score(change(self.params, setting.changes), setting)
        return self._scored[key]

    def _score(self, params: Params, setting: Setting) -> pd.Series:
        predictions = self._store(self._predict(params, setting))
        images = self.images[self.images["fold"] == FOLD]
        parts = np.zeros(len(images), int)
        for part, (_, held_out) in enumerate(GroupKFold(PARTS).split(images, groups=images["group"])):
            parts[held_out] = part
        return self._evaluate(params, predictions, parts)

    def _store(self, predictions: Iterator[Prediction]) -> Predictions:
        path = Path(self._folder.name) / "predictions.npz"
        write_predictions(path, predictions)
        return Predictions([path])

    def _predict(self, params: Params, setting: Setting) -> Iterator[Prediction]:
        if setting.zoom == "stored":
            return self._pick_scales(params)
        runtime = start_runtime(params.runtime)
        weights = self.train(params) if setting.trained else self.folds / "weights" / params.member_ids[0]
        if setting.zoom == "estimated":
            folds = load_folds(weights, self.folds / "sizes" / params.member_ids[0], [FOLD], params.recipe)
            return predict_estimated(folds, self.inside.images(), params.contrast, params.size, params.predict, runtime)
        models = load_models(weights, [FOLD], params.recipe)
        if setting.zoom == "true":
            return predict_true_size(models, self.inside, params.contrast, params.size, params.predict, runtime)
        return predict_at(models, self.inside.images(), None, params.contrast, params.predict, runtime)

    def _pick_scales(self, params: Params) -> Iterator[Prediction]:
        """Yield the run's own predictions at the zooms of `params`."""
        kept = [self.params.predict.scales.index(scale) for scale in params.predict.scales]
        every = Predictions([self.folds / "oof" / self.params.member_ids[0] / f"{FOLD}.npz"])
        for name in self.inside.image_ids:
            probabilities, zoom = every[name]
            yield Prediction(name, probabilities[kept], zoom)

    def train(self, params: Params) -> Path:
        """Train a network for the fold, unless that was done; return its weights' folder."""
        folder = SCRATCH / ("native" if params.size.object_diameter_px == 0 else "one-size")
        weights = folder / f"{FOLD}.safetensors"
        train_fold(
            self.folded.outside(FOLD), FOLD, params.recipe, weights, folder, params.housekeeping, title="short training"
        )
        return folder

    def _evaluate(self, params: Params, predictions: Predictions, parts: NDArray[np.int64]) -> pd.Series:
        """Return the cross-fitted AP of each image, as the stage `evaluate` finds it."""
        finder = CandidateFinder(params.predict.scales, params.size.object_diameter_px, params.select)
        part_of = dict(zip(self.inside.image_ids, parts.tolist(), strict=True))
        path, workers = Path(self._folder.name) / "candidates.npz", params.housekeeping.workers
        held_out = cross_validate(predictions, self.inside, part_of, params.decode, finder, path, workers)
        return pd.Series(
            {
                name: average_precision(count_matches(self.inside.label_map(name), label_map)).mean()
                for name, label_map, _ in held_out.found
            }
        )


def main() -> None:
    parser = make_run_parser(__doc__ or "")
    parser.add_argument("levers", nargs="*", metavar="LEVER", choices=[*LEVERS, []], help=", ".join(LEVERS))
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation.csv", metavar="CSV")
    arguments = parser.parse_args()
    study = Study(arguments.run)
    known = pd.read_csv(arguments.out).set_index("lever") if arguments.out.is_file() else pd.DataFrame()
    for name in arguments.levers or LEVERS:
        begin = time.monotonic()
        row = study.compare(name)
        print(f"{name}: {row['difference']:+.4f} ({row['low']:+.4f} .. {row['high']:+.4f}), {row['without']:.4f} -> "
              f"{row['with']:.4f} on {row['images']} images, {time.monotonic() - begin:.0f} s", flush=True)  # fmt: skip
        known = pd.concat([known.drop(index=name, errors="ignore"), pd.DataFrame([row]).set_index("lever")])
        kept = known.loc[[lever for lever in LEVERS if lever in known.index]]
        kept.round(4).to_csv(arguments.out, lineterminator="\n")


if __name__ == "__main__":
    with one_line_errors("stopped; levers that are done have rows"):
        main()
