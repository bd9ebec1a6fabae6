"""predict_oof@m-k: the images of a fold, predicted by the network that never saw them."""

from pathlib import Path

from pipeline.folds.networks import load_folds
from pipeline.folds.prediction import predict_estimated
from pipeline.folds.predictions import write_predictions
from pipeline.folds.table import open_folded
from pipeline.params import Params
from pipeline.progress import progress_bar
from pipeline.unet.runtime import start_runtime


def main(prepared: Path, folds: Path, weights: Path, sizes: Path, fold: int, out: Path, params: Params) -> None:
    """Predict the held-out images of one fold."""
    held_out = open_folded(prepared, folds, params.folds.ids).inside(fold)
    runtime = start_runtime(params.runtime)
    networks = load_folds(weights, sizes, [fold], params.recipe)
    with progress_bar(f"predict fold {fold}", len(held_out)) as advance:
        predictions = predict_estimated(
            networks, held_out.images(), params.contrast, params.size, params.predict, runtime, advance
        )
        write_predictions(out, predictions)
