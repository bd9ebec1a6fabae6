"""size@k: what reads the size of nuclei off a fold's network, from the images that it was trained on."""

from pathlib import Path

import numpy as np

from pipeline.experiments.inference import load_models, stretch_images
from pipeline.images.folds import check_folds, read_folds
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.params import Params
from pipeline.progress import track
from pipeline.stages.run import run
from pipeline.unet.runtime import configure_torch, select_device
from pipeline.unet.size import SizeReader, fit_reader, save_reader


def main(prepared: Path, folds: Path, weights: Path, fold: int, out: Path, params: Params) -> None:
    """Fit the size reader of one fold."""
    table = read_table(prepared)
    fold_table = read_folds(folds)
    check_folds(fold_table, table["image_id"].tolist(), None, params.folds.ids)
    object_px = params.train.object_diameter_px
    if object_px == 0:
        save_reader(SizeReader(np.zeros(0), 0.0), out)
        return
    configure_torch(params.train.threads)
    (model,) = load_models(weights, [fold], params)
    model = model.to(select_device(params.train.device))
    held_out = fold_table.loc[fold_table["fold"] == fold, "image_id"]
    used = table[~table["image_id"].isin(held_out) & (table["median_area_px"] > 0)]
    diameters = 2 * np.sqrt(used["median_area_px"].to_numpy(float) / np.pi)
    pack = Pack(prepared / "images.npz")
    images = stretch_images(((name, pack[f"{name}.image"]) for name in used["image_id"]), params)
    pairs = ((image, float(size)) for (_, image), size in zip(images, diameters, strict=True))
    tracked = track(pairs, f"size fold {fold}", len(used))
    save_reader(fit_reader(model, tracked, object_px, params.size, params.train.precision), out)


if __name__ == "__main__":
    run(main)
