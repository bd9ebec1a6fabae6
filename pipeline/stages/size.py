"""size@m-k: what reads the size of nuclei off a fold's network, from the images that it was trained on."""

from pathlib import Path

import numpy as np

from pipeline.folds.networks import load_models
from pipeline.folds.sizes import learn_sizes
from pipeline.folds.table import open_folded
from pipeline.params import Params
from pipeline.unet.runtime import start_runtime
from pipeline.unet.size import SizeReader, save_reader


def main(prepared: Path, folds: Path, weights: Path, fold: int, out: Path, params: Params) -> None:
    """Fit the size reader of one fold."""
    learnt = open_folded(prepared, folds, params.folds.ids).outside(fold)
    if params.size.object_diameter_px == 0:
        save_reader(SizeReader(np.zeros(0), 0.0), out)
        return
    runtime = start_runtime(params.runtime)
    (model,) = load_models(weights, [fold], params.recipe)
    model, title = model.to(runtime.device), f"size fold {fold}"
    save_reader(learn_sizes(model, learnt, params.contrast, params.augment, params.size, runtime, title), out)
