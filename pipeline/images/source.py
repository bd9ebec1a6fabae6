"""What a layout is given, and what it gives: an archive to read, and its images, ready to be stored.

In: a source of `data.sources`, or `data.test`. Out: where its files lie; an image as it was read, with its row of the
table.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.images.compact import compact_image, compact_labels, expand_image, expand_labels
from pipeline.images.image_type import classify_image_type
from pipeline.images.masks import Problem


@dataclass(frozen=True)
class Source:
    """An archive to read, and what is made of the faults in it.

    Attributes:
        section: what params.yaml calls it, for messages, as `data.sources.dsb2018`.
        archive: zip, folder or TIFF.
        labels: the second file of a layout that has its labels apart.
        labelled: whether labels belong to the images; a test set has none, or none that may be used.
        allow_unlabelled: accept images that should have labels and have none.
        min_fragment_px: detached fragments of a mask below this many pixels are dropped.
        max_pixels: of an image; a larger header is refused before it is decoded.
        workers: processes that may read it.
    """

    section: str
    archive: Path
    labels: Path | None
    labelled: bool
    allow_unlabelled: bool
    min_fragment_px: int
    max_pixels: int
    workers: int


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready to be stored, as `compact.py` makes it, with its row of the table.

    Stored are (H, W, 1 or 3) uint8, and labels (H, W) uint8 or uint16, or None in a test set.

    The row has a `source` only where the archive itself says which one the image came from.
    """

    image_id: str
    stored_image: NDArray[np.uint8]
    stored_labels: NDArray[Any] | None
    row: dict[str, Any]
    problems: list[Problem]

    @property
    def image(self) -> NDArray[np.uint8]:
        """The image, (H, W, 3) uint8 RGB."""
        return expand_image(self.stored_image)

    @property
    def label_map(self) -> NDArray[np.uint16] | None:
        """The label map, (H, W) uint16."""
        return None if self.stored_labels is None else expand_labels(self.stored_labels)


def describe_image(
    image_id: str, image: NDArray[np.uint8], label_map: NDArray[np.uint16] | None, problems: list[Problem]
) -> PreparedImage:
    """Describe an image (H, W, 3) uint8 RGB and its label map (H, W) in a row, but for what its source says."""
    areas = np.bincount(label_map.ravel())[1:] if label_map is not None else np.zeros(0, int)
    found = {kind: [p.value for p in problems if p.problem == kind] for kind in {p.problem for p in problems}}
    row = {
        "image_id": image_id,
        "height": image.shape[0],
        "width": image.shape[1],
        "nuclei": len(areas),
        "median_area_px": float(np.median(areas)) if len(areas) else 0.0,
        "image_type": classify_image_type(image),
        "empty_masks": len(found.get("empty", ())),
        "overlap_px": sum(found.get("overlap", ())),
        "covered_masks": len(found.get("covered", ())),
        "dropped_specks": len(found.get("speck", ())),
        "fragments": len(found.get("fragment", ())),
        "filled_holes": len(found.get("hole", ())),
    }
    stored_labels = None if label_map is None else compact_labels(label_map)
    return PreparedImage(image_id, compact_image(image), stored_labels, row, problems)


def locate_file(archives: Path, name: str, key: str) -> Path:
    """Return the path of a file or folder of data.dir.

    Raises:
        InputError: it lies elsewhere, where DVC would not see it change; `key` is what params.yaml calls it.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(
            f"params.yaml: {key} is {name!r}, which leads out of data.dir, {archives}; link or copy it into that folder"
        )
    return archives / name
