"""Trained folds at work: stored images or a user's own to probabilities.

Held-out folds, the test set and a user's images all pass through `predict_probabilities_of` here.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.files import atomic_path
from pipeline.images.contrast import apply_contrast, find_contrast
from pipeline.images.store import PackWriter
from pipeline.params import Params
from pipeline.unet.folding import fold_batch_norms
from pipeline.unet.model import IN_CHANNELS, NormalizedUNet
from pipeline.unet.predict import FindZoom, predict_images
from pipeline.unet.runtime import configure_torch, select_device
from pipeline.unet.weights import load_weights


def load_folds(weights: Path, folds: Sequence[int], params: Params) -> list[NormalizedUNet]:
    """Load the networks of `folds` from the folder `weights`, ready to predict: with batch norms folded.

    Raises:
        InputError: a file is missing, damaged, or holds another network than `params.unet`.
    """
    models = [load_weights(weights / f"{fold}.safetensors", params.unet)[0] for fold in folds]
    side = models[0].sizes.input_for(64) if models else 0
    # Drawn from a seed: the same networks are folded every time.
    image = torch.rand(1, IN_CHANNELS, side, side, generator=torch.Generator().manual_seed(0))
    return [fold_batch_norms(model, image) for model in models]


def predict_probabilities_of(
    models: Sequence[NormalizedUNet],
    images: Iterable[tuple[str, NDArray[np.uint8]]],
    params: Params,
    find_zoom: FindZoom | None = None,
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (image_id, probabilities (H, W, 3) uint8) of images (H, W, 3) uint8 RGB, averaged over `models`.

    `find_zoom` is given the image with its brightness stretched; without it each image is seen at its own size.
    """
    train = params.train
    configure_torch(train.threads)
    stretched = ((name, apply_contrast(image, find_contrast(image, params.contrast))) for name, image in images)
    device = select_device(train.device)
    return predict_images(
        models, stretched, params.predict, device, train.precision, train.channels_last, find_zoom
    )


def store_predictions(path: Path, predictions: Iterable[tuple[str, NDArray[np.uint8]]]) -> None:
    """Write predictions to a pack, one after another: memory does not grow with their number."""
    with atomic_path(path) as partial, PackWriter(partial) as pack:
        for image_id, probabilities in predictions:
            pack.add(f"{image_id}.probabilities", probabilities)
