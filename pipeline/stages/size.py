"""size@k: what reads the size of nuclei off a fold's network, from the images that it was trained on."""

from pathlib import Path

import numpy as np

from pipeline.folds.networks import load_models
from pipeline.folds.table import open_folded
from pipeline.images.augment import build_recolour
from pipeline.images.contrast import stretch_images
from pipeline.launch import run
from pipeline.params import Params
from pipeline.progress import track
from pipeline.unet.runtime import start_runtime
from pipeline.unet.size import SizeReader, fit_reader, save_reader


def main(prepared: Path, folds: Path, weights: Path, fold: int, out: Path, params: Params) -> None:
    """Fit the size reader of one fold."""
    learnt = open_folded(prepared, folds, params.folds.ids).outside(fold)
    if params.size.object_diameter_px == 0:
        save_reader(SizeReader(np.zeros(0), 0.0), out)
        return
    runtime = start_runtime(params.runtime)
    (model,) = load_models(weights, [fold], params.recipe)
    model = model.to(runtime.device)
    has_nuclei = learnt.select(learnt.table.loc[learnt.diameters_px > 0, "image_id"])
    images = stretch_images(has_nuclei.images(), params.contrast)
    pairs = ((image, float(size)) for (_, image), size in zip(images, has_nuclei.diameters_px, strict=True))
    tracked = track(pairs, f"size fold {fold}", len(has_nuclei))
    recolour = build_recolour(params.augment, runtime.device)
    save_reader(fit_reader(model, tracked, params.size, runtime, recolour), out)


if __name__ == "__main__":
    run(main)
