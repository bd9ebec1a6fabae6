"""predict_testset: the test set, predicted by all folds' networks together."""

from pathlib import Path

from pipeline.folds.networks import load_folds
from pipeline.folds.prediction import predict_estimated
from pipeline.folds.predictions import write_predictions
from pipeline.images.splits import PreparedSplit
from pipeline.params import Params
from pipeline.progress import progress_bar
from pipeline.unet.runtime import start_runtime


def main(prepared: Path, weights: Path, sizes: Path, out: Path, params: Params) -> None:
    """Predict the test images with the mean of the networks of `folds.ids`."""
    split, runtime = PreparedSplit.open(prepared), start_runtime(params.runtime)
    networks = load_folds(weights, sizes, params.folds.ids, params.recipe)
    with progress_bar("predict test set", len(split)) as advance:
        predictions = predict_estimated(
            networks, split.images(), params.contrast, params.size, params.predict, runtime, advance
        )
        write_predictions(out, predictions)
