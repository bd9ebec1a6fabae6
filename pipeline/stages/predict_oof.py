"""predict_oof@k: the images of a fold, predicted by the network that never saw them."""

from pathlib import Path

from pipeline.experiments.inference import load_folds, predict_with, store_predictions
from pipeline.images.folds import check_folds, read_folds
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.params import Params
from pipeline.progress import track
from pipeline.stages.run import run


def main(prepared: Path, folds: Path, weights: Path, sizes: Path, fold: int, out: Path, params: Params) -> None:
    """Predict the held-out images of one fold."""
    table = read_folds(folds)
    check_folds(table, read_table(prepared)["image_id"].tolist(), None, params.folds.ids)
    image_ids = table.loc[table["fold"] == fold, "image_id"].tolist()
    pack = Pack(prepared / "images.npz")
    images = ((image_id, pack[f"{image_id}.image"]) for image_id in image_ids)
    predictions = predict_with(load_folds(weights, sizes, [fold], params), images, params)
    store_predictions(out, track(predictions, f"predict fold {fold}", len(image_ids)))


if __name__ == "__main__":
    run(main)
