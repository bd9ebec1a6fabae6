"""What the score loses on images of acquisitions that training has not seen, measured by leaving acquisitions out.

`python -m pipeline.studies.unseen [--run DIR]` needs a finished run's folder, as `pipeline.studies.ablation` does. An
acquisition is the images of one type and frame size. Networks are trained for a short while on the images outside of
fold 0: one on all of them, and others without some acquisitions. The images of fold 0 that belong to those are seen by
both, at the zoom of their true size, and nuclei are read by one decoding that was chosen on the other images of fold 0.
The difference in AP, acquisition by acquisition, goes to results/unseen.csv: one of the two sources of
`evaluate.unseen_drop`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.folds.networks import load_models
from pipeline.folds.prediction import predict_true_size
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.decoding import Decoding, average_zooms, decode_instances
from pipeline.nuclei.metric import score
from pipeline.nuclei.tuning import choose, count_decodings, decoding_grid, score_decodings
from pipeline.params import Params
from pipeline.studies.ablation import FOLD, ONE_LOOK, SHORT, Study, change
from pipeline.studies.study import RESULTS
from pipeline.unet.runtime import start_runtime

# What each network is trained without. The commonest, 256 x 256 fluorescence, is half of the images and stays.
LEFT_OUT = (
    ("fluorescence 360x360", "purple_on_white 256x320", "fluorescence 512x640"),
    ("fluorescence 520x696", "purple_on_purple 256x320", "brightfield 1024x1024"),
)


def predict(study: Study, params: Params, without: tuple[str, ...]) -> dict[str, NDArray[np.uint8]]:
    """Return the probabilities of fold 0's images, seen at their true size by a network trained without some."""
    models, runtime = load_models(study.train(params, without), [FOLD], params.recipe), start_runtime(params.runtime)
    predicted = predict_true_size(models, study.inside, params.contrast, params.size, params.predict, runtime)
    return {name: probabilities for name, probabilities, _ in predicted}


def choose_decoding(predictions: dict[str, NDArray[np.uint8]], images: PreparedSplit, params: Params) -> Decoding:
    """Return the decoding that some images choose."""
    choices = decoding_grid(params.decode)
    items = ((name, predictions[name], images.label_map(name)) for name in images.image_ids)
    return choices[choose(score_decodings(count_decodings(items, choices, params.housekeeping.workers, len(images))))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path(), metavar="DIR", help="checkout of the run; default: the current folder"
    )
    arguments = parser.parse_args()
    study, begin = Study(arguments.run), time.monotonic()
    params = change(study.params, {**ONE_LOOK, **SHORT})
    images = study.images[study.images["fold"] == FOLD]
    seen = predict(study, params, ())
    rows = []
    for without in LEFT_OUT:
        is_left_out = images["acquisition"].isin(without)
        both = (seen, predict(study, params, without))
        others = study.inside.select(images.loc[~is_left_out, "image_id"])
        decodings = [choose_decoding(predictions, others, params) for predictions in both]
        for row in images[is_left_out].itertuples():
            name = str(row.image_id)
            found = [
                score(study.inside.label_map(name), decode_instances(average_zooms(predictions[name]), decoding))
                for predictions, decoding in zip(both, decodings, strict=True)
            ]
            rows.append((row.acquisition, name, *found))
    scores = pd.DataFrame(rows, columns=["acquisition", "image_id", "seen", "unseen"])
    table = scores.groupby("acquisition")[["seen", "unseen"]].mean()
    table.insert(0, "images", scores.groupby("acquisition").size())
    table["drop"] = table["seen"] - table["unseen"]
    table.round(4).to_csv(RESULTS / "unseen.csv", lineterminator="\n")
    print(table.round(3).to_string())
    print(
        f"mean drop {table['drop'].mean():.3f}, from one acquisition to the next +- {np.std(table['drop'], ddof=1):.3f}"
    )
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
