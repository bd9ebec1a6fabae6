"""TIFF files to pages.

In: a path. Out: arrays of any plain dtype, a page each; colours are samples of a page and not pages.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders


def is_tiff(path: Path) -> bool:
    """Say whether the file at `path` begins as a TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in _TIFF


def read_tiff(path: Path, max_pixels: int) -> list[NDArray[Any]]:
    """Return the pages of a TIFF, of all its series in turn, each (H, W) or (H, W, 1..4), its palette looked up.

    Raises:
        InputError: the file is damaged, of a compression that is not read here, or a page is empty or larger than
            `max_pixels`.
    """
    try:
        with tifffile.TiffFile(path) as file:
            return [page for series in file.series for page in _read_series(series, path, max_pixels)]
    except (InputError, MemoryError):
        raise
    except Exception as error:  # tifffile raises whatever its many codecs do
        if "imagecodecs" in str(error):  # what it calls the library of all codecs that Python has not
            kind = str(error).split("requires")[0].strip("\"'<> ").removeprefix("COMPRESSION.")
            raise InputError(
                f"{path}: a TIFF of a compression that is not read here ({kind}); save it uncompressed or with zlib "
                "(deflate) compression"
            ) from error
        raise InputError(
            f"{path}: not a readable TIFF ({type(error).__name__}: {shorten(error)}); save it anew"
        ) from error


def _read_series(series: tifffile.TiffPageSeries, path: Path, max_pixels: int) -> list[NDArray[Any]]:
    axes, shape = series.axes, series.shape
    rows, columns = shape[axes.index("Y")], shape[axes.index("X")]
    if rows * columns == 0 or rows * columns > max_pixels:
        raise InputError(
            f"{path}: {rows} x {columns} px; give 1 to max_pixels = {max_pixels} pixels "
            "(housekeeping.max_pixels; for the command `predict`, housekeeping.predict_max_pixels)"
        )
    array = series.asarray()
    # Not a number anywhere makes the extremes so too; an array of answers would be as large as the image.
    if array.dtype.kind not in "buif" or not np.isfinite([array.min(), array.max()]).all():
        raise InputError(f"{path}: values of type {array.dtype}, or not finite; convert the image to 8 or 16 bits")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    colour = "S" if "S" in axes else "C" if "C" in axes and shape[axes.index("C")] == 3 else ""
    samples = shape[axes.index(colour)] if colour else 1
    if samples > 4:
        raise InputError(f"{path}: {samples} samples per pixel; save it as grey, RGB, or a page per channel")
    order = [i for i, axis in enumerate(axes) if axis not in ("Y", "X", colour)]
    order += [axes.index(axis) for axis in ("Y", "X", *colour)]
    pages = array.transpose(order).reshape(-1, rows, columns, *([samples] if colour else []))
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pages = (np.iinfo(pages.dtype).max if pages.dtype.kind in "ui" else pages.max()) - pages
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
        # The table has 16 bits per colour; its upper 8 are what was there before it was stored.
        colours = (np.asarray(series.keyframe.colormap) >> 8).astype(np.uint8)
        pages = np.ascontiguousarray(colours.T)[pages]
    return list(pages)
