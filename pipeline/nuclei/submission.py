"""A submission: written, and read once to be checked, counted, decoded and scored.

In: label maps, or a CSV `ImageId,EncodedPixels` with a row per nucleus and, for an image without any, one row with an
empty text. Out: a file, or what is wrong with it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.nuclei.csv_rows import Row, name_fault, read_rows
from pipeline.nuclei.rle import encode_label_map, paint_nucleus
from pipeline.tables import check_image_id

COLUMNS = ("ImageId", "EncodedPixels")

Shape = tuple[int, int]


@dataclass(frozen=True)
class Submission:
    """A submission as its file has it; no run in it was looked at.

    Attributes:
        path: of the file, which errors name.
        images: the rows of each image, in the file's order; one row with an empty text where nothing was found.
    """

    path: Path
    images: dict[str, list[Row]]

    def count_nuclei(self) -> int:
        """Return the number of nuclei in all images."""
        return sum(bool(row.text) for rows in self.images.values() for row in rows)

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Check that Kaggle will take it.

        Args:
            shapes: (H, W) of every test image.

        Raises:
            InputError: an image is unknown or missing, runs are malformed, unsorted or out of bounds, or a pixel lies
                in two nuclei. The message names the line.
        """
        for image_id, rows in self.images.items():
            if image_id not in shapes:
                fault = f"image {image_id} is not in the test set; drop its rows, or name the right archive"
                raise name_fault(self.path, rows[0].line, fault)
        self.demand_images(shapes)
        for image_id in self.images:
            self.decode_columns(image_id, shapes[image_id])

    def demand_images(self, wanted: Iterable[str]) -> None:
        """Refuse a submission that has no row for one of the images `wanted`.

        Raises:
            InputError: it has none; the message names the first such image.
        """
        missing = sorted(set(wanted) - self.images.keys())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"{self.path}: no row for image {missing[0]}{more}; an image without nuclei has one empty row"
            )

    def decode_columns(self, image_id: str, shape: Shape) -> NDArray[np.int32]:
        """Return an image's labels column by column, (H * W,) int32; each row that has runs is a nucleus.

        Raises:
            InputError: as `check`, for this image.
        """
        columns = np.zeros(shape[0] * shape[1], dtype=np.int32)
        for label, row in enumerate(self.images[image_id], start=1):
            try:
                paint_nucleus(columns, row.text, shape, label)
            except InputError as error:
                raise name_fault(self.path, row.line, f"image {image_id}: {error}") from error
        return columns

    def label_maps(self, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, NDArray[np.int32]]]:
        """Yield (image_id, label_map (H, W) int32) of the images in `shapes`, which gives their (H, W).

        Raises:
            InputError: as `check`, for these images.
        """
        self.demand_images(shapes)
        for image_id, (height, width) in shapes.items():
            columns = self.decode_columns(image_id, (height, width))
            yield image_id, np.ascontiguousarray(columns.reshape(width, height).T)


def write_submission(path: Path, items: Iterable[tuple[str, NDArray[np.integer]]]) -> None:
    """Write one row per nucleus, image by image; memory does not grow with their number.

    Args:
        path: the CSV to write, atomically.
        items: (image_id, label_map (H, W) integers) in strictly ascending order of image_id.

    Raises:
        InputError: an image_id is out of order, comes twice, or cannot stand in a CSV.
    """
    previous = ""
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(COLUMNS) + "\n")
        for image_id, label_map in items:
            check_image_id(image_id, str(path))
            if image_id <= previous:
                raise InputError(f"image {image_id} comes after {previous}; give each image once, sorted by image_id")
            previous = image_id
            file.writelines(f"{image_id},{text}\n" for text in encode_label_map(label_map) or [""])


def read_submission(path: Path) -> Submission:
    """Read a submission; rows of one image may stand anywhere.

    Raises:
        InputError: the file is missing, is not UTF-8, has other columns, an image_id is empty, or a row comes twice or
            says that there is no nucleus beside others of its image.
    """
    images: dict[str, list[Row]] = {}
    for line, (image_id, text) in read_rows(path, COLUMNS):
        images.setdefault(image_id, []).append(Row(line, text.strip()))
    for image_id, rows in images.items():
        seen: dict[str, int] = {}
        for row in rows:
            if row.text in seen:
                raise name_fault(path, row.line, f"image {image_id}: the same row as line {seen[row.text]}; drop one")
            seen[row.text] = row.line
        if "" in seen and len(rows) > 1:
            raise name_fault(path, seen[""], f"image {image_id}: an empty row beside others; drop it")
    return Submission(path, images)


def read_label_maps(path: Path, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (image_id, label_map (H, W) int32) of the images in `shapes`, from a CSV in the form of a submission.

    Raises:
        InputError: as `read_submission` and, for these images, `Submission.check`.
    """
    return read_submission(path).label_maps(shapes)


def validate_submission(path: Path, shapes: Mapping[str, Shape]) -> int:
    """Check that Kaggle will take the submission at `path`, and return the number of its nuclei.

    Args:
        path: the CSV.
        shapes: (H, W) of every test image.

    Raises:
        InputError: as `read_submission` and `Submission.check`.
    """
    submission = read_submission(path)
    submission.check(shapes)
    return submission.count_nuclei()
