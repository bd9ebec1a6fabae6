"""Trained folds at work: images to probabilities.

Held-out folds, the test set and a user's images all pass through `predict_estimated` here, a member of an ensemble at a
time: each image is seen at the zoom that brings its nuclei, as estimated, to the size that the networks know. Images
come as they are stored, (H, W, 3) uint8 RGB; what networks see of them is made on the way.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.diameter import zooms_to_size
from pipeline.folds.networks import Folds
from pipeline.folds.zoom import find_zoom
from pipeline.images.contrast import show_images
from pipeline.images.splits import NamedImage, PreparedSplit
from pipeline.params import ContrastParams, PredictParams, SizeParams
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.predict import Advance, FindZoom, predict_images
from pipeline.unet.prediction import Prediction
from pipeline.unet.runtime import Runtime


def predict_estimated(
    folds: Folds,
    images: Iterable[NamedImage],
    contrast: ContrastParams,
    size: SizeParams,
    predict: PredictParams,
    runtime: Runtime,
    advance: Advance | None = None,
) -> Iterator[Prediction]:
    """Yield predictions of images, averaged over `folds`, each at the zoom of its estimated size.

    `advance` is told the part of the images that was done, as `predict_images` says.
    """

    def estimate(_: str, image: NDArray[np.uint8]) -> float:
        return find_zoom(folds, image, size, runtime)

    return predict_images(folds.models, show_images(images, contrast), predict, runtime, estimate, advance)


def predict_at(
    models: Sequence[NormalizedUNet],
    images: Iterable[NamedImage],
    zoom_of: FindZoom | None,
    contrast: ContrastParams,
    predict: PredictParams,
    runtime: Runtime,
) -> Iterator[Prediction]:
    """Yield predictions of images, averaged over `models`, at zooms that are known; without `zoom_of` at zoom 1."""
    return predict_images(models, show_images(images, contrast), predict, runtime, zoom_of)


def predict_true_size(
    models: Sequence[NormalizedUNet],
    split: PreparedSplit,
    contrast: ContrastParams,
    size: SizeParams,
    predict: PredictParams,
    runtime: Runtime,
) -> Iterator[Prediction]:
    """Yield predictions of a labelled split's images, each at the zoom that its nuclei, as labelled, ask for."""
    zooms = dict(zip(split.image_ids, zooms_to_size(split.diameters_px, size).tolist(), strict=True))
    return predict_at(models, split.images(), lambda image_id, _: zooms[image_id], contrast, predict, runtime)
