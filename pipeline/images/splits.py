"""A prepared split, as everything behind the stage `prepare` sees it: images, their label maps, and the table of them.

In: the folder that `prepare` wrote. Out: arrays, `(H, W, 3)` uint8 RGB and `(H, W)` uint16, read from the disk when
they are asked for. A split is safe to pickle into processes: no image travels.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.diameter import equivalent_diameter
from pipeline.errors import InputError
from pipeline.images.compact import expand_image, expand_labels
from pipeline.images.store import Pack
from pipeline.images.table import CURE, read_table

# The rows and columns of a part of an image.
Window = tuple[slice, slice]
WHOLE: Window = np.s_[:, :]

# An image_id, or the name of a user's image; (H, W, 3) uint8 RGB.
NamedImage = tuple[str, NDArray[np.uint8]]


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of the numbers 0 .. count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


class PreparedSplit:
    """Images with their label maps and their rows of the table; all arrays are read-only.

    Attributes:
        folder: where they lie.
        table: a row per image, sorted by image_id; columns as in `TABLE_COLUMNS`.
    """

    def __init__(self, folder: Path, pack: Pack, table: pd.DataFrame) -> None:
        """Take the images of `table` from `pack`; `open` and `select` make splits."""
        self.folder, self.table = folder, table.sort_values("image_id", ignore_index=True)
        self._pack = pack

    @classmethod
    def open(cls, folder: Path) -> "PreparedSplit":
        """Open the split that `prepare` wrote to `folder`.

        Raises:
            InputError: its pack or its table is missing or damaged.
        """
        return cls(folder, Pack(folder / "images.npz"), read_table(folder))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def image_ids(self) -> list[str]:
        """The ids of the images, sorted."""
        return [str(image_id) for image_id in self.table["image_id"]]

    @property
    def diameters_px(self) -> NDArray[np.float64]:
        """The diameter of each image's median nucleus, (n,); 0 where there is none."""
        return equivalent_diameter(self.table["median_area_px"].to_numpy(np.float64))

    def image(self, image_id: str, window: Window = WHOLE) -> NDArray[np.uint8]:
        """Return an image, or what `window` cuts from it, (H, W, 3) uint8 RGB; nothing else of it is read.

        Raises:
            InputError: the split has no image of this id, or it is damaged.
        """
        stored = self._map_array(image_id, "image")
        if stored.dtype != np.uint8 or stored.ndim != 3 or stored.shape[2] not in (1, 3):
            raise self._damaged(image_id, "image", stored)
        return expand_image(stored[window])

    def label_map(self, image_id: str, window: Window = WHOLE) -> NDArray[np.uint16]:
        """Return a label map, or what `window` cuts from it, (H, W) uint16, 0 background, 1..N.

        Raises:
            InputError: the split has no label map of this id, as a test set has none, or it is damaged.
        """
        stored = self._map_array(image_id, "label_map")
        if stored.dtype not in (np.uint8, np.uint16) or stored.ndim != 2:
            raise self._damaged(image_id, "label_map", stored)
        return expand_labels(stored[window])

    def images(self) -> Iterator[NamedImage]:
        """Yield (image_id, image) in the table's order."""
        return ((image_id, self.image(image_id)) for image_id in self.image_ids)

    def label_maps(self) -> Iterator[tuple[str, NDArray[np.uint16]]]:
        """Yield (image_id, label map) in the table's order."""
        return ((image_id, self.label_map(image_id)) for image_id in self.image_ids)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return (H, W) of each image, in the table's order."""
        sides = zip(self.table["height"].tolist(), self.table["width"].tolist(), strict=True)
        return dict(zip(self.image_ids, sides, strict=True))

    def shape_of(self, image_id: str) -> tuple[int, int]:
        """Return (H, W) of an image.

        Raises:
            InputError: the split has no image of this id.
        """
        if image_id not in (shapes := self.shapes()):
            raise self._no_image(image_id)
        return shapes[image_id]

    def select(self, image_ids: Iterable[str]) -> "PreparedSplit":
        """Return the split of these images alone, whatever their order.

        Raises:
            InputError: the split has no image of such an id.
        """
        wanted = set(image_ids)
        chosen = self.table["image_id"].isin(wanted)
        if unknown := sorted(wanted - set(self.table["image_id"][chosen])):
            raise self._no_image(unknown[0])
        return PreparedSplit(self.folder, self._pack, self.table[chosen])

    def _no_image(self, image_id: str) -> InputError:
        return InputError(f"{self.folder / 'table.csv'}: no image {image_id!r} in it; {CURE}")

    def _damaged(self, image_id: str, kind: str, stored: NDArray[Any]) -> InputError:
        return InputError(f"{self._pack.path}: {image_id}.{kind} is {stored.shape} {stored.dtype}: damaged; {CURE}")

    def _map_array(self, image_id: str, kind: str) -> NDArray[Any]:
        try:
            return self._pack[f"{image_id}.{kind}"]
        except KeyError as error:
            raise InputError(f"{self._pack.path}: no {kind} of the image {image_id!r} in it; {CURE}") from error
