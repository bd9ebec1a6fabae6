"""Trained folds, ready to work. In: the folders of their weights and size readers. Out: networks and readers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.params import Recipe
from pipeline.unet.fusing import fuse_layers
from pipeline.unet.model import IN_CHANNELS, NormalizedUNet, load_model
from pipeline.unet.size import SizeReader, load_reader
from pipeline.unet.weights import check_params


class Folds(NamedTuple):
    """The networks of some folds, and what reads sizes off each one's features."""

    models: list[NormalizedUNet]
    readers: list[SizeReader]


def load_models(weights: Path, folds: Sequence[int], recipe: Recipe) -> list[NormalizedUNet]:
    """Load the networks of `folds` from the folder `weights`, ready to predict: with layers fused.

    Raises:
        InputError: a file is missing, damaged, or is of other parameters than `recipe` has.
    """
    paths = [weights / f"{fold}.safetensors" for fold in folds]
    check_params(paths, recipe)
    models = [load_model(path, recipe.unet)[0] for path in paths]
    side = models[0].lengths.input_for(64) if models else 0
    # Drawn from a seed: the same networks are fused every time.
    image = torch.rand(1, IN_CHANNELS, side, side, generator=torch.Generator().manual_seed(0))
    return [fuse_layers(model, image) for model in models]


def load_folds(weights: Path, sizes: Path, folds: Sequence[int], recipe: Recipe) -> Folds:
    """Load the networks of `folds` from the folder `weights` and their size readers from the folder `sizes`.

    Raises:
        InputError: a file is missing, damaged, or is of other parameters than `recipe` has.
    """
    models = load_models(weights, folds, recipe)
    return Folds(models, [load_reader(sizes / f"{fold}.safetensors") for fold in folds])
