"""The cross-validation's candidates on the disk: what the second-level model is fitted on.

In: candidates of images with their worth. Out: a pack with `<image_id>.features`, `.runs`, `.ends` and `.shape` as in
`Candidates`, and `.worth` (n,) float32, for each image that has an entry.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.images.store import Pack, PackWriter
from pipeline.nuclei.candidates import Candidates

Floats = NDArray[np.float32]

_PARTS = ("features", "runs", "ends", "shape")
_WORTH = ".worth"


def write_candidates(path: Path, rated: Iterable[tuple[str, Candidates, Floats]]) -> None:
    """Write (image_id, candidates, worth (n,) float32) to a pack; memory does not grow with their number."""
    with atomic_path(path) as partial, PackWriter(partial) as pack:
        for image_id, candidates, worth in rated:
            for part in _PARTS:
                pack.add(f"{image_id}.{part}", getattr(candidates, part))
            pack.add(image_id + _WORTH, worth)


class CandidateStore:
    """Stored candidates by image_id; iterating gives the ids of the images that have an entry.

    Raises:
        InputError: the pack is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._pack = Pack(path)

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(_WORTH) for name in self._pack if name.endswith(_WORTH))

    def __contains__(self, image_id: object) -> bool:
        return f"{image_id}{_WORTH}" in self._pack

    def candidates(self, image_id: str) -> Candidates:
        """Return the candidates of an image.

        Raises:
            InputError: it has no entry.
        """
        return Candidates(*(self._find(f"{image_id}.{part}") for part in _PARTS))

    def lesson(self, image_id: str) -> tuple[Floats, Floats]:
        """Return what the model learns of an image: features (n, F) and worth (n,).

        Raises:
            InputError: it has no entry.
        """
        return self._find(f"{image_id}.features"), self._find(image_id + _WORTH)

    def _find(self, name: str) -> NDArray[Any]:
        try:
            return self._pack[name]
        except KeyError as error:
            raise InputError(f"{self._pack.path}: no {name}; run the stage `evaluate` again") from error
