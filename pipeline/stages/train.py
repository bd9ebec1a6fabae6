"""train@k: one fold's network, from the prepared images of the other folds.

A fold is a pure function of (params, prepared images, fold table, k): run it anywhere, in any order.
"""

import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import pipeline.images
import pipeline.nuclei.targets
import pipeline.unet
from pipeline.errors import InputError
from pipeline.experiments.watch import HeldOutWatch
from pipeline.files import sha256_of, write_text
from pipeline.images.augment import augment_batch, crop_batch
from pipeline.images.dataset import TileDataset, make_loader
from pipeline.images.folds import check_folds, read_folds
from pipeline.images.resident import ResidentTiles, fits_on
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.nuclei.targets import encode_targets, paper_weight_map, weight_reach
from pipeline.params import Params
from pipeline.stages.run import run
from pipeline.unet.checkpoint import Checkpoint, digest_sources, fingerprint, locked_folder
from pipeline.unet.model import build_model
from pipeline.unet.runtime import configure_torch, select_device
from pipeline.unet.training import Batch, PrepareBatch, Trainer, train_model
from pipeline.unet.weights import save_weights

# Packages whose versions decide the weights.
_PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "albumentations", "opencv-python-headless", "numpy")


def main(prepared: Path, folds: Path, fold: int, weights: Path, history: Path, resume: Path, params: Params) -> float:
    """Train the network of one fold; an interrupted training goes on where it was."""
    table = read_table(prepared)
    fold_table = read_folds(folds)
    check_folds(fold_table, table["image_id"].tolist(), None, params.folds.ids)
    if fold not in params.folds.ids:
        raise InputError(f"fold {fold} is not one of folds.ids, {list(params.folds.ids)}")
    configure_torch(params.train.threads)
    held_out = fold_table.loc[fold_table["fold"] == fold, "image_id"]
    val = table["image_id"].isin(held_out)
    with locked_folder(resume / f"fold{fold}") as folder:
        trainer = make_trainer(fold, params)
        parts = describe_inputs(prepared, fold_table, fold, params, trainer)
        pack = Pack(prepared / "images.npz")
        checkpoint = Checkpoint(folder / fingerprint(parts))
        stale = [old for old in folder.iterdir() if old.is_dir() and old != checkpoint.folder]
        if stale:
            print(f"train fold {fold}: {stale[0]} is of other parameters, images, code or versions, and not used")
        train_model(
            trainer,
            lambda step: load_batches(pack, table[~val], trainer, params, step),
            make_preparation(params, trainer.model.margin_px),
            checkpoint,
            HeldOutWatch(pack, table[val], params),
            params.housekeeping.checkpoint_every_s,
            f"train fold {fold}",
            lambda step: name_images(pack, table[~val], trainer, params, step),
        )
        metadata = {"fold": str(fold), "inputs": fingerprint(parts), **encoder_metadata(trainer)}
        save_weights(trainer.ema, weights, metadata)
        write_text(history, pd.DataFrame(trainer.history).to_csv(index=False, lineterminator="\n"))
        # The last state stays: DVC deletes the weights of a stage that was killed before they were recorded, and then
        # they are not trained again. Those before it, and those of abandoned parameters, are of no use any more.
        checkpoint.keep_newest()
        for old in stale:
            shutil.rmtree(old)
        return trainer.seconds


def make_trainer(fold: int, params: Params) -> Trainer:
    """Build the network of a fold. Each fold has a seed of its own, for its weights as for its batches."""
    train = params.train.model_copy(update={"seed": params.train.seed + 1000 * fold})
    torch.manual_seed(train.seed)
    model = build_model(params.unet)
    for crop_px in (train.start_crop_px, train.crop_px):
        model.sizes.output_of(crop_px)  # refuses a size that the network cannot take
    return Trainer(model, train, params.loss, select_device(train.device))


def encoder_metadata(trainer: Trainer) -> dict[str, str]:
    """Return where the encoder's weights came from, for the run card."""
    return {f"encoder_{key}": value for key, value in trainer.model.encoder_weights.items()}


def load_batches(pack: Pack, table: pd.DataFrame, trainer: Trainer, params: Params, step: int) -> Iterator[Batch]:
    """Yield the batches from `step` to the end of the schedule, those of its first half with smaller tiles.

    Raises:
        InputError: a process that cuts tiles died.
    """
    train = trainer.train
    for phase, end in ((train.at_start(), trainer.steps // 2), (train, trainer.steps)):
        if step < end:
            items = step * train.batch, end * train.batch
            dataset = TileDataset(pack, table, phase, params.contrast, params.augment, train.seed, *items)
            try:
                yield from _load_tiles(dataset, trainer, params)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(
                    f"a process that cuts tiles died ({' '.join(str(error).split())}); lower "
                    f"housekeeping.loader_workers ({params.housekeeping.loader_workers}), 0 for none, and run the same "
                    "command to go on"
                ) from error
            step = end


def name_images(pack: Pack, table: pd.DataFrame, trainer: Trainer, params: Params, step: int) -> list[str]:
    """Return the ids of the images that a step learns from, in the order of its batch."""
    train = trainer.train
    items = step * train.batch, (step + 1) * train.batch
    dataset = TileDataset(pack, table, train, params.contrast, params.augment, train.seed, *items)
    return [dataset.name_image(item) for item in range(len(dataset))]


def _load_tiles(dataset: TileDataset, trainer: Trainer, params: Params) -> Iterable[Batch]:
    """Return the batches of a data set, from images on the device where they fit there."""
    train = trainer.train
    if not dataset.has_effects and fits_on(trainer.device, dataset.pixels):
        return ResidentTiles(dataset, train.batch, trainer.device)
    return make_loader(dataset, train.batch, params.housekeeping.loader_workers, trainer.device.type == "cuda")


def make_preparation(params: Params, margin_px: int = 0) -> PrepareBatch:
    """Compose what happens to a batch on the device: augmentation, then targets, then weights of pixels.

    `margin_px` is what the network's output lacks on each side. Targets and weights are made of what is left, and of
    as much around it as they look at.
    """
    loss = params.loss
    reach_px = max(params.targets.boundary_px, params.targets.distance_px, weight_reach(loss.weight_map_sigma_px))
    rim_px = max(0, margin_px - reach_px)
    crops = {train.tile_px: train.crop_px for train in (params.train.at_start(), params.train)}

    @torch.no_grad()
    def prepare(images: Tensor, label_maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        side = images.shape[-1]
        crop_px = side if params.augment.backend == "albumentations" else crops[side]  # that one has cropped
        if params.augment.backend == "device":
            inputs, ids = augment_batch(images, label_maps, crop_px, params.augment, generator)
        else:
            inputs, ids = crop_batch(images, label_maps, crop_px)
        ids = ids[:, rim_px : ids.shape[1] - rim_px, rim_px : ids.shape[2] - rim_px]
        targets = encode_targets(ids, params.targets)
        if not loss.weight_map:
            return inputs, targets, None
        # The paper's w_c, which balances the classes, is 1 here: where that is wanted, Dice does the balancing.
        weights = 1 + paper_weight_map(ids, loss.weight_map_w0, loss.weight_map_sigma_px)
        return inputs, targets, weights.unsqueeze(1)

    return prepare


def describe_inputs(
    prepared: Path, fold_table: pd.DataFrame, fold: int, params: Params, trainer: Trainer
) -> dict[str, Any]:
    """Collect everything that decides the weights: what a checkpoint must match to be resumed from."""
    return {
        "fold": fold,
        "params": describe_params(params),
        "folds": fold_table.to_csv(index=False),
        "images": [sha256_of(prepared / name) for name in ("images.npz", "table.csv")],
        **describe_means(trainer),
    }


def describe_params(params: Params) -> dict[str, Any]:
    """Collect the parameters that decide the weights."""
    sections = ("contrast", "unet", "targets", "loss", "augment", "train")
    return {name: getattr(params, name).model_dump() for name in sections}


def describe_means(trainer: Trainer) -> dict[str, Any]:
    """Collect what decides the weights beside parameters and images: pretraining, device, code and versions."""
    rooms = [*pipeline.images.__path__, *pipeline.unet.__path__]
    sources = [path for room in rooms for path in sorted(Path(room).glob("*.py"))]
    sources += [Path(str(pipeline.nuclei.targets.__file__)), Path(__file__)]
    return {
        "encoder": trainer.model.encoder_weights,
        "device": trainer.device.type,
        "code": digest_sources(sources),
        "versions": [version(name) for name in _PACKAGES],
    }


if __name__ == "__main__":
    run(main)
