"""One fold's network, from the images outside the fold: what the stage, the studies and the benchmarks call.

In: the images to learn from, and a `Recipe`. Out: a file of weights, and the trainer that made it. Training is a pure
function of (images, fold, recipe): run it anywhere, in any order. It goes on where it was stopped, from checkpoints
under a fingerprint of everything that decides the weights.
"""

import inspect
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import InputError, shorten
from pipeline.files import sha256_of
from pipeline.housekeeping import HousekeepingParams
from pipeline.images.augment import build_augment
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, TrainingImages, make_loader
from pipeline.images.resident import ResidentImages, ResidentTiles, fits_on
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.targets import encode_targets, paper_weight_map, weight_reach
from pipeline.params import Recipe
from pipeline.provenance import digest_code, fingerprint
from pipeline.unet.checkpoint import Checkpoint, locked_folder
from pipeline.unet.model import NormalizedUNet, build_model
from pipeline.unet.runtime import start_runtime
from pipeline.unet.training import Batch, Phase, PrepareBatch, Trainer, Watch, train_model
from pipeline.unet.weights import record_params, save_weights

# Changes a network in place before its first step; known to a checkpoint by its source, so it captures no values.
Edit = Callable[[NormalizedUNet], None]

# Packages whose versions decide the weights.
_PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "albumentations", "opencv-python-headless", "numpy")


def train_fold(
    images: PreparedSplit,
    fold: int,
    recipe: Recipe,
    weights: Path,
    resume: Path,
    housekeeping: HousekeepingParams,
    watch: Watch | None = None,
    edit: Edit | None = None,
    title: str | None = None,
) -> Trainer:
    """Train the network of a fold and write its weights; an interrupted training goes on where it was.

    A training that was finished is not repeated: its last state stays in `resume`.

    Args:
        images: what is learnt from: those outside the fold.
        fold: whose seed is used; each fold has one of its own, for its weights as for its batches.
        recipe: what decides the weights.
        weights: the file to write (.safetensors).
        resume: folder for checkpoints, for this training alone.
        housekeeping: how it is fed and saved.
        watch: called with the averaged network and the step at each epoch's end; it selects nothing.
        edit: what is done to the network beside what the recipe says.
        title: of the progress bar.

    Raises:
        InputError: another process trains in `resume`, the recipe cannot be built, there is no image, or training
            diverged.
    """
    title = title or f"train fold {fold}"
    with locked_folder(resume) as folder:
        trainer, feed, prepare = start_training(images, fold, recipe, housekeeping)
        parts = describe_inputs(images, fold, recipe, trainer)
        if edit:
            parts["edit"] = inspect.getsource(edit)
            edit(trainer.model)
            edit(trainer.ema)
        key = fingerprint(parts)
        checkpoint = Checkpoint(folder / key)
        stale = [old for old in folder.iterdir() if old.is_dir() and old != checkpoint.folder]
        if stale:
            print(f"{title}: {stale[0]} is of other parameters, images, code or versions, and not used")
        train_model(
            trainer,
            feed.batches_from,
            prepare,
            checkpoint,
            watch or (lambda _model, _step: {}),
            housekeeping.checkpoint_every_s,
            title,
            feed.name_images,
        )
        origin = {f"encoder_{name}": value for name, value in trainer.model.encoder_weights.items()}
        runtime = {"device": trainer.runtime.device.type, "precision": trainer.runtime.precision}
        metadata = {"fold": str(fold), "inputs": key, **runtime, **origin, **record_params(recipe)}
        save_weights(trainer.ema, weights, metadata)
        # The last state stays: DVC deletes the weights of a stage that was killed before they were recorded, and then
        # they are not trained again. Those before it, and those of abandoned parameters, are of no use any more.
        checkpoint.keep_newest()
        for old in stale:
            shutil.rmtree(old)
    return trainer


class Training(NamedTuple):
    """All that a step takes: who learns, from which batches, and what is made of a batch on the device."""

    trainer: Trainer
    feed: "BatchFeed"
    prepare: PrepareBatch


def start_training(
    images: PreparedSplit,
    fold: int,
    recipe: Recipe,
    housekeeping: HousekeepingParams,
    resident: ResidentImages | None = None,
) -> Training:
    """Build all that the training of a fold takes, before its first step; arguments as in `train_fold`.

    `resident` are the images on the device, where an earlier training of the same ones left them.

    Raises:
        InputError: the recipe cannot be built, or there is no image.
    """
    trainer = make_trainer(fold, recipe)
    learnt = TrainingImages(images, recipe.contrast, recipe.size, recipe.train.balance)
    feed = BatchFeed(learnt, trainer, recipe, housekeeping, resident)
    return Training(trainer, feed, make_preparation(recipe, trainer.model.margin_px))


def make_trainer(fold: int, recipe: Recipe) -> Trainer:
    """Build the network of a fold and all that trains it, from the fold's seed."""
    train = recipe.train.model_copy(update={"seed": recipe.train.seed + 1000 * fold})
    runtime = start_runtime(recipe.runtime)
    torch.manual_seed(train.seed)
    model = build_model(recipe.unet)
    for crop_px in (train.start_crop_px, train.crop_px):
        model.lengths.output_of(crop_px)  # refuses a size that the network cannot take
    return Trainer(model, train, recipe.loss, runtime)


class BatchFeed:
    """The batches of a training, those of the first half of its steps of smaller tiles.

    Where images fit on the device they are uploaded once, and tiles are cut there.
    """

    def __init__(
        self,
        images: TrainingImages,
        trainer: Trainer,
        recipe: Recipe,
        housekeeping: HousekeepingParams,
        resident: ResidentImages | None = None,
    ) -> None:
        self._images, self._trainer, self._augment = images, trainer, recipe.augment
        self._workers = housekeeping.loader_workers
        self._resident = resident

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield the batches from `step` to the end of the schedule.

        Raises:
            InputError: a process that cuts tiles died.
        """
        for phase in self._trainer.phases:
            if step >= phase.last_step:
                continue
            try:
                for tiles, label_maps in self._cut_tiles(phase, max(step, phase.first_step)):
                    yield Batch(tiles, label_maps, phase.crop_px)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(
                    f"a process that cuts tiles died ({shorten(error)}); lower "
                    f"housekeeping.loader_workers ({self._workers}), 0 for none, and run the same command to go on"
                ) from error

    def name_images(self, step: int) -> list[str]:
        """Return the ids of the images that a step learns from, in the order of its batch."""
        train = self._trainer.train
        return self._images.name_images(train.seed, range(step * train.batch, (step + 1) * train.batch))

    def _cut_tiles(self, phase: Phase, step: int) -> Iterable[tuple[Tensor, Tensor]]:
        train, device = self._trainer.train, self._trainer.runtime.device
        items = step * train.batch, phase.last_step * train.batch
        effects = CpuAugment(self._augment, phase.crop_px)
        if not effects.active and (self._resident or fits_on(device, self._images.pixels)):
            self._resident = self._resident or ResidentImages(self._images, device)
            return ResidentTiles(self._resident, phase.tile_px, train.batch, train.seed, *items)
        dataset = TileDataset(self._images, phase.tile_px, effects, train.seed, *items)
        return make_loader(dataset, train.batch, self._workers, device.type == "cuda")


def make_preparation(recipe: Recipe, margin_px: int) -> PrepareBatch:
    """Compose what happens to a batch on the device: augmentation, then targets, then weights of pixels.

    `margin_px` is what the network's output lacks on each side. Targets and weights are made of what is left, and of
    as much around it as they look at.
    """
    loss, targets = recipe.loss, recipe.targets
    reach_px = max(targets.boundary_px, targets.distance_px, weight_reach(loss.weight_map_sigma_px))
    rim_px = max(0, margin_px - reach_px)
    augment = build_augment(recipe.augment)

    @torch.no_grad()
    def prepare(
        images: Tensor, label_maps: Tensor, crop_px: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, ids = augment(images, label_maps, crop_px, generator)
        ids = ids[:, rim_px : ids.shape[1] - rim_px, rim_px : ids.shape[2] - rim_px]
        encoded = encode_targets(ids, targets)
        if not loss.weight_map:
            return inputs, encoded, None
        # The paper's w_c, which balances the classes, is 1 here: where that is wanted, Dice does the balancing.
        weights = 1 + paper_weight_map(ids, loss.weight_map_w0, loss.weight_map_sigma_px)
        return inputs, encoded, weights.unsqueeze(1)

    return prepare


def describe_inputs(images: PreparedSplit, fold: int, recipe: Recipe, trainer: Trainer) -> dict[str, Any]:
    """Collect everything that decides the weights: what a checkpoint must match to be resumed from."""
    return {
        "fold": fold,
        "recipe": recipe.describe(),
        "image_ids": images.image_ids,
        "images": [sha256_of(images.folder / name) for name in ("images.npz", "table.csv")],
        "encoder": trainer.model.encoder_weights,
        "device": trainer.runtime.device.type,
        "precision": trainer.runtime.precision,  # what `auto` came to
        "code": digest_code(__name__),
        "versions": [version(name) for name in _PACKAGES],
    }
