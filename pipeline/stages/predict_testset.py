"""predict_testset@m-k: a share of the test set, predicted by all folds' networks of a member together."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.folds.networks import load_folds
from pipeline.folds.prediction import predict_estimated
from pipeline.folds.predictions import write_predictions
from pipeline.images.splits import PreparedSplit
from pipeline.params import Params
from pipeline.progress import progress_bar
from pipeline.unet.runtime import start_runtime


def main(prepared: Path, weights: Path, sizes: Path, share: int, out: Path, params: Params) -> None:
    """Predict every Nth test image, N being the shares, with the mean of the networks of `folds.ids`."""
    if share not in params.data.test_shares:
        raise InputError(f"share {share} is not one of data.test_shares, {list(params.data.test_shares)}")
    whole, runtime = PreparedSplit.open(prepared), start_runtime(params.runtime)
    split = whole.select(whole.image_ids[share :: len(params.data.test_shares)])
    networks = load_folds(weights, sizes, params.folds.ids, params.recipe)
    with progress_bar(f"predict test set, share {share}", len(split)) as advance:
        predictions = predict_estimated(
            networks, split.images(), params.contrast, params.size, params.predict, runtime, advance
        )
        write_predictions(out, predictions)
