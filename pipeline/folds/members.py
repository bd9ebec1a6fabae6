"""An ensemble's members at work on images of a user: what each predicts, averaged by its weight.

Of a large image nothing whole is held: `predict_large` is given what networks see of it, and its zooms, and hands its
probabilities on from the top.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.folds.blend import average_zoom
from pipeline.folds.networks import Folds
from pipeline.folds.prediction import predict_at, predict_estimated
from pipeline.images.splits import NamedImage
from pipeline.params import ContrastParams, PredictParams, SizeParams
from pipeline.unet.ensemble import Ensemble
from pipeline.unet.predict import Look, predict_strips
from pipeline.unet.prediction import Prediction, Windows, average
from pipeline.unet.runtime import Runtime
from pipeline.unet.views import views_of


class Member(NamedTuple):
    """A member of an ensemble, ready to work: its networks, how images are shown to them, and how often it counts."""

    folds: Folds
    contrast: ContrastParams
    size: SizeParams
    predict: PredictParams
    weight: int


def predict_blend(
    members: Sequence[Member],
    images: Sequence[NamedImage],
    wanted_px: float,
    runtime: Runtime,
    zoom: float | None = None,
) -> Iterator[Prediction]:
    """Yield predictions of images, the weighted mean over members, each at the zoom of its own estimated size.

    Args:
        members: at least one.
        images: as they are stored.
        wanted_px: the size of nuclei to which the zoom that is returned brings them; 0 where it says nothing.
        runtime: where the networks run, and how.
        zoom: which brings the nuclei of all images to that size, where it is known.
    """
    sources = []
    for member in members:
        if zoom is None:
            source = predict_estimated(member.folds, images, member.contrast, member.size, member.predict, runtime)
        else:
            factor = zoom_of_member(zoom, member.size, wanted_px)
            source = predict_at(
                member.folds.models, images, lambda *_, z=factor: z, member.contrast, member.predict, runtime
            )
        sources.append(source)
    weights, known_px = [member.weight for member in members], [member.size.object_diameter_px for member in members]
    for parts in zip(*sources, strict=True):
        probabilities = average([part.probabilities for part in parts], weights)
        yield Prediction(
            parts[0].image_id, probabilities, average_zoom([part.zoom for part in parts], weights, known_px, wanted_px)
        )


def zoom_of_member(zoom: float, size: SizeParams, wanted_px: float) -> float:
    """Return the zoom at which a member sees an image, by the one that brings its nuclei to `wanted_px`."""
    known_px = size.object_diameter_px
    return zoom * (known_px / wanted_px) if known_px and wanted_px else 1.0


def predict_large(
    members: Sequence[Member], seen: Sequence[Windows], zooms: Sequence[float], runtime: Runtime
) -> Iterator[NDArray[np.uint8]]:
    """Yield the mean over zooms and members of the prediction that `predict_at` makes of one image, strip by strip.

    Args:
        members: at least one.
        seen: (H, W, 3) uint8 RGB, as each one's networks see it.
        zooms: that it is seen at by each.
        runtime: where the networks run.

    Yields:
        (rows, W, 3) uint8, value / 255, from the top on.
    """
    # On a CPU tiles of their usual size gain nothing by going together, and take as much more memory.
    changes = {"batch": 1} if runtime.device.type == "cpu" else {}
    looks = [
        Look(
            Ensemble(member.folds.models, views_of(member.predict.views), runtime),
            image,
            member.predict.model_copy(update=changes),
            zoom,
            member.weight,
        )
        for member, image, zoom in zip(members, seen, zooms, strict=True)
    ]
    yield from predict_strips(looks)
