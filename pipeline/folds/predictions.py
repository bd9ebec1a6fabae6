"""Predictions on the disk: written one after another, mapped when they are asked for.

In: predictions of images. Out: a pack with `<image_id>.probabilities` (S, H, W, 3) uint8 and `<image_id>.zoom` ()
float64 for each, and a mapping that reads some packs as one.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.images.store import PackWriter, open_packs
from pipeline.unet.prediction import Prediction

_PROBABILITIES = ".probabilities"


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions to a pack; memory does not grow with their number."""
    with atomic_path(path) as partial, PackWriter(partial) as pack:
        for image_id, probabilities, zoom in predictions:
            pack.add(image_id + _PROBABILITIES, probabilities)
            pack.add(f"{image_id}.zoom", np.array(zoom))


# By image_id the probabilities (S, H, W, 3) uint8, value / 255, and the image's zoom.
Stored = Mapping[str, tuple[NDArray[np.uint8], float]]


class Predictions(Mapping[str, tuple[NDArray[np.uint8], float]]):
    """Stored predictions, by image_id.

    Args:
        paths: of the packs; exactly these are read, whatever lies beside them.

    Raises:
        InputError: a pack is missing or damaged; later, an image is asked for that was not predicted.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._arrays = open_packs(paths)

    def __getitem__(self, image_id: str) -> tuple[NDArray[np.uint8], float]:
        try:
            return self._arrays[image_id + _PROBABILITIES], float(self._arrays[f"{image_id}.zoom"])
        except KeyError as error:
            raise InputError(f"image {image_id}: it has no prediction; run the stage that predicts it again") from error

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(_PROBABILITIES) for name in self._arrays if name.endswith(_PROBABILITIES))

    def __len__(self) -> int:
        return sum(1 for _ in self)
