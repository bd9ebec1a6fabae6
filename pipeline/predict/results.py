"""What `predict` writes of an image: its label map, a table of its nuclei, and an overlay to look at.

In: an image and its label map. Out: a file for each of WRITERS; one more format is a function and an entry there. All
is done in strips: besides the two arrays, the memory that this takes does not grow with an image's area.
"""

import struct
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray

from pipeline.files import atomic_path
from pipeline.images.contrast import brighten_image
from pipeline.images.png import PNG_SIGNATURE, png_chunk

_OUTLINE_RGB = (255, 220, 0)
_STRIP_ROWS = 256  # at a time


def write_nuclei(out: Path, name: str, image: NDArray[np.uint8], label_map: NDArray[np.int32]) -> Path:
    """Write an image's results to `out`, a file for each of WRITERS, and return the path of the first, the label map.

    All are written before the first gets its name, and the label map gets it last: where that is, the others are.

    Args:
        out: folder; made if missing.
        name: of the image, which the files' names begin with.
        image: (H, W, 3) uint8 RGB; the last writer may draw on it.
        label_map: (H, W) int32, 0 background.

    Raises:
        InputError: the disk does not take a file.
        OSError: a file cannot have its name: it is too long, or a folder has it.
    """
    paths = [out / f"{name}{suffix}" for suffix in WRITERS]
    with ExitStack() as stack:
        for path, write in zip(paths, WRITERS.values(), strict=True):
            write(stack.enter_context(atomic_path(path)), image, label_map)
    return paths[0]


def is_result(path: Path) -> bool:
    """Say whether the name of `path` is one that `write_nuclei` gives."""
    return path.name.endswith(tuple(WRITERS))


def write_label_map(path: Path, _image: NDArray[np.uint8], label_map: NDArray[np.int32]) -> None:
    """Write a TIFF of uint16, or uint32 for more nuclei than that counts, in strips: there is no second array."""
    dtype = np.dtype("<u2" if label_map.max(initial=0) < 2**16 else "<u4")
    strips = (
        zlib.compress(label_map[top : top + _STRIP_ROWS].astype(dtype).data, level=6)
        for top in range(0, len(label_map), _STRIP_ROWS)
    )
    tifffile.imwrite(
        path,
        strips,
        shape=label_map.shape,
        dtype=dtype,
        byteorder="<",
        rowsperstrip=_STRIP_ROWS,
        compression="zlib",
        photometric="minisblack",
    )


def write_table(path: Path, _image: NDArray[np.uint8], label_map: NDArray[np.int32]) -> None:
    """Write a CSV: label, area_px, and the centroid's row and column in px, both counted from 0."""
    measure_nuclei(label_map).round(2).to_csv(path, index=False, lineterminator="\n")


def write_overlay(path: Path, image: NDArray[np.uint8], label_map: NDArray[np.int32]) -> None:
    """Write a PNG of the image with outlines, drawn on `image` itself, unless that is dim."""
    overlay = brighten_image(image)[0]
    draw_outlines(overlay, label_map)
    write_png(path, overlay)


def measure_nuclei(label_map: NDArray[np.integer]) -> pd.DataFrame:
    """Return a row for each nucleus of a label map (H, W): label, area_px, and the centroid's row and column in px.

    What scikit-image's `regionprops_table` gives, at a cost that does not grow with the number of nuclei.
    """
    count = int(label_map.max(initial=0))
    area, rows, columns = (np.zeros(count + 1, np.int64) for _ in range(3))
    for top in range(0, len(label_map), _STRIP_ROWS):
        row, column = np.nonzero(label_map[top : top + _STRIP_ROWS])
        label = label_map[top : top + _STRIP_ROWS][row, column]
        # Of a strip's nuclei only: there are as many strips as make an image's height.
        first = int(label.min(initial=count))
        part = slice(first, int(label.max(initial=first)) + 1)
        # Sums of whole numbers below 2^53 are exact as floats.
        area[part] += np.bincount(label - first, minlength=part.stop - first)
        rows[part] += np.bincount(label - first, row + top, part.stop - first).astype(np.int64)
        columns[part] += np.bincount(label - first, column, part.stop - first).astype(np.int64)
    label = np.flatnonzero(area)
    area = area[label]
    return pd.DataFrame({"label": label, "area_px": area, "row": rows[label] / area, "column": columns[label] / area})


def draw_outlines(image: NDArray[np.uint8], label_map: NDArray[np.integer]) -> None:
    """Paint the inner rim of each nucleus over an image (H, W, 3) uint8, in place."""
    height = len(label_map)
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        at_ends = (int(top == 0), int(bottom == height)), (1, 1)
        padded = np.pad(label_map[max(0, top - 1) : bottom + 1], at_ends, mode="edge")
        inner = padded[1:-1, 1:-1]
        rim = inner != padded[:-2, 1:-1]
        for other in (padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            rim |= inner != other
        image[top:bottom][rim & (inner > 0)] = _OUTLINE_RGB


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) uint8 RGB, strip by strip: OpenCV holds the whole file, which may be as large as that.

    Source: https://www.w3.org/TR/png-3, sections 5 (chunks), 9 (filter 2, "Up") and 11.2.1 (IHDR).
    """
    height, width = image.shape[:2]
    packer = zlib.compressobj(level=1)
    above = np.zeros((1, 3 * width), np.uint8)
    with path.open("wb") as file:
        file.write(PNG_SIGNATURE)
        file.write(png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))
        for top in range(0, height, _STRIP_ROWS):
            rows = np.concatenate([above, image[top : top + _STRIP_ROWS].reshape(-1, 3 * width)])
            filtered = np.full((len(rows) - 1, 3 * width + 1), 2, np.uint8)
            np.subtract(rows[1:], rows[:-1], out=filtered[:, 1:])
            above = rows[-1:]
            file.write(png_chunk(b"IDAT", packer.compress(filtered.data)))
        file.write(png_chunk(b"IDAT", packer.flush()))
        file.write(png_chunk(b"IEND", b""))


# Writes one file of an image (H, W, 3) uint8 RGB and its label map (H, W) int32.
Writer = Callable[[Path, NDArray[np.uint8], NDArray[np.int32]], None]

# By the suffix of what they write. The overlay comes last: it may be drawn on the image itself.
WRITERS: dict[str, Writer] = {
    ".label_map.tif": write_label_map,
    ".nuclei.csv": write_table,
    ".overlay.png": write_overlay,
}
