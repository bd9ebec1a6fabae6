"""Trained folds at work: stored images or a user's own to probabilities.

Held-out folds, the test set and a user's images all pass through `predict_with` here: each image is seen at the zoom
that brings its nuclei, as estimated, to the size that the networks know.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.files import atomic_path
from pipeline.images.contrast import apply_contrast, find_contrast
from pipeline.images.store import PackWriter
from pipeline.params import Params
from pipeline.unet.folding import fold_batch_norms
from pipeline.unet.model import IN_CHANNELS, NormalizedUNet
from pipeline.unet.predict import Ensemble, FindZoom, Prediction, predict_images, predict_strips
from pipeline.unet.runtime import configure_torch, select_device
from pipeline.unet.size import SizeReader, find_zoom, load_reader
from pipeline.unet.views import views_of
from pipeline.unet.weights import load_weights

NamedImage = tuple[str, NDArray[np.uint8]]


class Folds(NamedTuple):
    """The networks of some folds, and what reads sizes off each one's features."""

    models: list[NormalizedUNet]
    readers: list[SizeReader]


def load_models(weights: Path, folds: Sequence[int], params: Params) -> list[NormalizedUNet]:
    """Load the networks of `folds` from the folder `weights`, ready to predict: with batch norms folded.

    Raises:
        InputError: a file is missing, damaged, or holds another network than `params.unet`.
    """
    models = [load_weights(weights / f"{fold}.safetensors", params.unet)[0] for fold in folds]
    side = models[0].sizes.input_for(64) if models else 0
    # Drawn from a seed: the same networks are folded every time.
    image = torch.rand(1, IN_CHANNELS, side, side, generator=torch.Generator().manual_seed(0))
    return [fold_batch_norms(model, image) for model in models]


def load_folds(weights: Path, sizes: Path, folds: Sequence[int], params: Params) -> Folds:
    """Load the networks of `folds` from the folder `weights` and their size readers from the folder `sizes`.

    Raises:
        InputError: a file is missing, damaged, or holds another network than `params.unet`.
    """
    readers = [load_reader(sizes / f"{fold}.safetensors") for fold in folds]
    return Folds(load_models(weights, folds, params), readers)


def stretch_images(images: Iterable[NamedImage], params: Params) -> Iterator[NamedImage]:
    """Yield (image_id, image (H, W, 3) uint8 RGB) with the brightness that networks are shown."""
    return ((name, apply_contrast(image, find_contrast(image, params.contrast))) for name, image in images)


def predict_with(folds: Folds, images: Iterable[NamedImage], params: Params) -> Iterator[Prediction]:
    """Yield predictions of images (H, W, 3) uint8 RGB, averaged over `folds`, at the zoom of their estimated size."""
    return predict_at(folds.models, images, params, lambda _, image: _zoom_of(folds, image, params))


def predict_large(folds: Folds, image: NDArray[np.uint8], params: Params) -> Iterator[NDArray[np.uint8]]:
    """Yield the mean over zooms of the prediction that `predict_with` makes of one image, strip by strip.

    Args:
        folds: the networks to average.
        image: (H, W, 3) uint8 RGB, contiguous; its brightness is stretched in place, for a large one has no room twice.
        params: all parameters.

    Yields:
        (rows, W, 3) uint8, value / 255, from the top on.
    """
    train = params.train
    configure_torch(train.threads)
    device = select_device(train.device)
    apply_contrast(image, find_contrast(image, params.contrast), in_place=True)
    views = views_of(params.predict.views)
    ensemble = Ensemble(folds.models, views, device, train.precision, train.channels_last)
    # On a CPU tiles of their usual size gain nothing by going together, and take as much more memory.
    predict = params.predict.model_copy(update={"batch": 1}) if device.type == "cpu" else params.predict
    yield from predict_strips(ensemble, image, predict, _zoom_of(folds, image, params))


def _zoom_of(folds: Folds, image: NDArray[np.uint8], params: Params) -> float:
    train = params.train
    return find_zoom(*folds, image, train.object_diameter_px, params.size, train.precision)


def predict_at(
    models: Sequence[NormalizedUNet], images: Iterable[NamedImage], params: Params, zoom_of: FindZoom | None
) -> Iterator[Prediction]:
    """Yield predictions of images (H, W, 3) uint8 RGB, averaged over `models`, at a zoom that is known.

    `zoom_of` is given an image with its brightness stretched; without it each image is seen at its own size.
    """
    train = params.train
    configure_torch(train.threads)
    device = select_device(train.device)
    stretched = stretch_images(images, params)
    return predict_images(models, stretched, params.predict, device, train.precision, train.channels_last, zoom_of)


def store_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions to a pack, one after another: memory does not grow with their number.

    For each image `<image_id>.probabilities` (S, H, W, 3) uint8 and `<image_id>.zoom` () float64.
    """
    with atomic_path(path) as partial, PackWriter(partial) as pack:
        for image_id, probabilities, zoom in predictions:
            pack.add(f"{image_id}.probabilities", probabilities)
            pack.add(f"{image_id}.zoom", np.array(zoom))
