"""What the score loses on images of acquisitions that training has not seen, measured by leaving acquisitions out.

`python -m tests.benchmarks.unseen [--run DIR]` needs a finished run's folder, as `tests.benchmarks.ablation` does. An
acquisition is the images of one type and frame size. Networks are trained for a short while on the images outside of
fold 0: one on all of them, and others without some acquisitions. The images of fold 0 that belong to those are seen by
both, at the zoom of their true size, and nuclei are read by one decoding that was chosen on the other images of fold 0.
The difference in AP, acquisition by acquisition, goes to unseen.csv: one of the two sources of `evaluate.unseen_drop`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.experiments.inference import load_models, predict_at
from pipeline.images.dataset import base_zooms
from pipeline.nuclei.decoding import Decoding, average_zooms, decode_instances
from pipeline.nuclei.metric import score
from pipeline.nuclei.tuning import candidates, choose, count_candidates, score_candidates
from pipeline.params import Params
from tests.benchmarks.ablation import FOLD, ONE_LOOK, SHORT, Study, change
from tests.benchmarks.harness import ROOT

# What each network is trained without. The commonest, 256 x 256 fluorescence, is half of the images and stays.
LEFT_OUT = (
    ("fluorescence 360x360", "purple_on_white 256x320", "fluorescence 512x640"),
    ("fluorescence 520x696", "purple_on_purple 256x320", "brightfield 1024x1024"),
)


def predict(study: Study, params: Params, images: pd.DataFrame, without: tuple[str, ...]) -> dict[str, Any]:
    """Return the probabilities of images, seen at their true size by a network that was trained without some."""
    models = load_models(study.train(params, without), [FOLD], params)
    zooms = base_zooms(images["median_area_px"].to_numpy(float), params.train.object_diameter_px)
    zoom_of = dict(zip(images["image_id"], zooms.tolist(), strict=True))
    pairs = ((name, study.pack[f"{name}.image"]) for name in images["image_id"])
    predicted = predict_at(models, pairs, params, lambda name, _: zoom_of[name])
    return {f"{name}.probabilities": probabilities for name, probabilities, _ in predicted}


def choose_decoding(study: Study, params: Params, predictions: dict[str, Any], names: list[str]) -> Decoding:
    choices = candidates(params.decode)
    counts = count_candidates(predictions, study.pack, names, choices, params.decode.workers)
    return choices[choose(score_candidates(counts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT, metavar="DIR", help="checkout of the run; default: this one")
    arguments = parser.parse_args()
    study, begin = Study(arguments.run), time.monotonic()
    params = change(study.params, {**ONE_LOOK, **SHORT})
    images = study.images[study.images["fold"] == FOLD].sort_values("image_id")
    seen = predict(study, params, images, ())
    rows = []
    for without in LEFT_OUT:
        is_left_out = images["acquisition"].isin(without)
        both = (seen, predict(study, params, images, without))
        others = images.loc[~is_left_out, "image_id"].tolist()
        decodings = [choose_decoding(study, params, predictions, others) for predictions in both]
        for row in images[is_left_out].itertuples():
            name = str(row.image_id)
            found = [
                score(study.pack[f"{name}.label_map"], decode_instances(average_zooms(p[f"{name}.probabilities"]), d))
                for p, d in zip(both, decodings, strict=True)
            ]
            rows.append((row.acquisition, name, *found))
    scores = pd.DataFrame(rows, columns=["acquisition", "image_id", "seen", "unseen"])
    table = scores.groupby("acquisition")[["seen", "unseen"]].mean()
    table.insert(0, "images", scores.groupby("acquisition").size())
    table["drop"] = table["seen"] - table["unseen"]
    table.round(4).to_csv(Path(__file__).with_suffix(".csv"), lineterminator="\n")
    print(table.round(3).to_string())
    print(
        f"mean drop {table['drop'].mean():.3f}, from one acquisition to the next +- {np.std(table['drop'], ddof=1):.3f}"
    )
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
