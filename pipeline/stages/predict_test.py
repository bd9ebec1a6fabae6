"""predict_test: the test set, predicted by all folds' networks together."""

from pathlib import Path

from pipeline.experiments.inference import load_folds, predict_with, store_predictions
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.params import Params
from pipeline.progress import track
from pipeline.stages.run import run


def main(prepared: Path, weights: Path, sizes: Path, out: Path, params: Params) -> None:
    """Predict the test images with the mean of the networks of `folds.ids`."""
    image_ids = read_table(prepared)["image_id"].tolist()
    pack = Pack(prepared / "images.npz")
    images = ((image_id, pack[f"{image_id}.image"]) for image_id in image_ids)
    predictions = predict_with(load_folds(weights, sizes, params.folds.ids, params), images, params)
    store_predictions(out, track(predictions, "predict test", len(image_ids)))


if __name__ == "__main__":
    run(main)
