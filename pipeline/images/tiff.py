"""TIFF files to pictures.

In: a path, or the bytes of a file. Out: pictures of any plain dtype, what the file says of them applied: palette,
polarity, orientation.

One rule says what a picture is. The samples that the file's photometric interpretation is about are one: the three of
RGB, the four of CMYK, the one of grey or of a palette. A further sample is opacity where the file tags it so, and else
a picture of its own, another stain, as is every place along any other axis: channels, slices, times, pages. Places
along the channel axis, and further samples, are counted as channels.
"""

import io
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten
from pipeline.images.contrast import split_rows
from pipeline.images.header import turn_upright

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
_CURE = "copy it again, or save it anew"
_UNCOMPRESSED, _JPEG = 1, (6, 7)
# How many samples of a pixel are its colour, by photometric interpretation.
_COLOURS = {"MINISBLACK": 1, "MINISWHITE": 1, "PALETTE": 1, "RGB": 3, "SEPARATED": 4, "YCBCR": 3}
_PREMULTIPLIED, _OPACITY = 1, 2  # values of the tag ExtraSamples
_CMYK = 1  # of the tag InkSet
_INK_SET, _ORIENTATION = 332, 274


class Picture(NamedTuple):
    """A picture of a file.

    Attributes:
        array: (H, W) or (H, W, 2..4), in the order grey or R, G, B, then opacity.
        channel: which of the file's channels it is of, counted from 0.
    """

    array: NDArray[Any]
    channel: int


def is_tiff(start: bytes) -> bool:
    """Say whether a file that begins so is a TIFF."""
    return start[:4] in _TIFF


def read_tiff(path: Path, max_pixels: int, data: bytes | None = None) -> list[NDArray[Any]]:
    """Return the arrays of `read_pictures`, each (H, W) or (H, W, 2..4), whatever channel they are of."""
    return [picture.array for picture in read_pictures(path, max_pixels, data)]


def read_pictures(path: Path, max_pixels: int, data: bytes | None = None) -> list[Picture]:
    """Return the pictures of a TIFF, of all its series in turn; smaller copies of others are left out.

    Where its bytes are given, as of an entry of a zip, `path` is only its name.

    Raises:
        InputError: the file is damaged or cut short, of a kind that is not read here, or a picture is empty or larger
            than `max_pixels`.
    """
    compression = ""
    try:
        with _refuse_warnings(path), tifffile.TiffFile(path if data is None else io.BytesIO(data)) as file:
            if not len(file.pages):
                raise InputError(f"{path}: a TIFF without a page; {_CURE}")
            compression = f" of compression {_name(file.pages.first.compression)}"
            every = file.series
            _check_count(file, every, path)
            whole = [series for series in every if not series.keyframe.is_reduced] or every
            return [picture for series in whole for picture in _read_series(series, path, max_pixels)]
    except (InputError, MemoryError):
        raise
    except Exception as error:  # tifffile raises whatever its many codecs do
        raise InputError(
            f"{path}: not a readable TIFF{compression} ({type(error).__name__}: {shorten(error)}); save it anew"
        ) from error


@contextmanager
def _refuse_warnings(path: Path) -> Iterator[None]:
    """Make an error of what tifffile would only log: it goes on with what is left of the file, or with zeros."""
    logger, records = logging.getLogger("tifffile"), list[logging.LogRecord]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    if records:
        # Its messages begin with the object that they are about, <tifffile.TiffFile 'name'>.
        message = shorten(records[0].getMessage().rpartition("> ")[2])
        raise InputError(f"{path}: a TIFF that is damaged or incomplete ({message}); {_CURE}")


def _check_count(file: tifffile.TiffFile, every: list[tifffile.TiffPageSeries], path: Path) -> None:
    """Refuse a file whose description promises more pictures than it holds."""
    promise = file.imagej_metadata or {}
    counts = [promise.get(key, 1) for key in ("channels", "slices", "frames")]
    promised = max(math.prod(counts), promise.get("images", 1))
    described = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")
    planes = sum(math.prod(map(int, re.findall(r'\bSize[CZT]="(\d+)"', pixels))) for pixels in described)
    promised = max(promised, planes)
    held = sum(series.size // max(1, series.sizes["height"] * series.sizes["width"]) for series in every)
    if held < promised:
        raise InputError(f"{path}: its description promises {promised} images, and it holds {held}; {_CURE}")


def _read_series(series: tifffile.TiffPageSeries, path: Path, max_pixels: int) -> list[Picture]:
    axes, shape, key = series.axes, series.shape, series.keyframe
    rows, columns = shape[axes.index("Y")], shape[axes.index("X")]
    if rows * columns == 0 or rows * columns > max_pixels:
        raise InputError(
            f"{path}: {rows} x {columns} px; give 1 to max_pixels = {max_pixels} pixels "
            "(housekeeping.max_pixels; for the command `predict`, housekeeping.predict_max_pixels)"
        )
    if "C" in axes and _name(key.photometric) == "RGB" and key.samplesperpixel == shape[axes.index("C")] > 1:
        axes = axes.replace("C", "S")  # some name the axis of colours so
    samples = shape[axes.index("S")] if "S" in axes else 1
    colours, extras = _list_samples(key, samples, path)
    _check_whole(series, path)
    array = series.asarray()
    # Not a number anywhere makes the extremes so too; an array of answers would be as large as the image.
    if array.dtype.kind not in "buif" or not np.isfinite([array.min(), array.max()]).all():
        raise InputError(f"{path}: values of type {array.dtype}, or not finite; convert the image to 8 or 16 bits")
    others = [i for i, axis in enumerate(axes) if axis not in "YXS"]
    order = others + [axes.index(axis) for axis in ("Y", "X", *("S" if "S" in axes else ""))]
    places = [shape[i] for i in others]
    pages = array.transpose(order).reshape(-1, rows, columns, samples)
    tag = key.tags.get(_ORIENTATION)
    pictures = []
    for number, page in enumerate(pages):
        place = dict(zip((axes[i] for i in others), np.unravel_index(number, places), strict=True)) if others else {}
        parts = _split_samples(page, colours, extras, key)
        for i, part in enumerate(parts):
            upright = turn_upright(part, 1 if tag is None else tag.value, str(path))
            pictures.append(Picture(upright, int(place.get("C", 0)) * len(parts) + i))
    return pictures


def _list_samples(page: tifffile.TiffPage, samples: int, path: Path) -> tuple[int, list[int]]:
    """Return how many samples of a pixel are its colour, and what the others are, as the tag ExtraSamples says."""
    photometric = _name(page.photometric)
    ink_set = page.tags.get(_INK_SET)
    is_other = photometric == "SEPARATED" and ink_set is not None and ink_set.value != _CMYK
    is_raw = photometric == "YCBCR" and page.compression not in _JPEG  # of JPEG, RGB is what is decoded
    if photometric not in _COLOURS or is_other or is_raw:
        raise InputError(f"{path}: a TIFF in the colour space {photometric}; save it as grey or RGB")
    colours = _COLOURS[photometric]
    if samples == 1:
        return 1, []  # a plane of each colour, on an axis of its own, is a channel
    if samples < colours:
        raise InputError(f"{path}: a TIFF in {photometric} of {samples} samples per pixel; save it as grey or RGB")
    tagged = [int(kind) for kind in page.extrasamples][: samples - colours]
    extras = tagged + [0] * (samples - colours - len(tagged))
    if len([kind for kind in extras if kind in (_PREMULTIPLIED, _OPACITY)]) > 1:
        raise InputError(f"{path}: a TIFF of more than one opacity; save it as grey or RGB")
    return colours, extras


def _check_whole(series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuse a series of which a part is not in the file: tifffile would read zeros, or less."""
    size, key = 0, series.keyframe
    for page in series.pages:
        if page is None:
            raise InputError(f"{path}: a TIFF of which pages are missing; {_CURE}")
        file = page.parent.filehandle
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if min(offset, count) <= 0:
                raise InputError(f"{path}: a TIFF with a strip or tile of no bytes; {_CURE}")
            if offset + count > file.size:
                raise InputError(
                    f"{path}: a TIFF that is cut short: it has {file.size} bytes, and pixels at {offset + count}; "
                    f"{_CURE}"
                )
            if key.compression in _JPEG and key.bitspersample == 8 and key.samplesperpixel in (1, 3):
                file.seek(offset)
                _check_jpeg(page.jpegtables, file.read(count), path)
        if len(page.dataoffsets) < math.prod(page.chunked):
            raise InputError(
                f"{path}: a TIFF of {len(page.dataoffsets)} strips or tiles, where {math.prod(page.chunked)} make its "
                f"image; {_CURE}"
            )
        held, needed = sum(page.databytecounts), page.size * int(np.min(key.bitspersample)) // 8
        if key.compression == _UNCOMPRESSED and held < needed:
            raise InputError(f"{path}: a TIFF of {held} bytes of pixels, where {needed} make its image; {_CURE}")
        size += page.size
    # ImageJ writes many images behind the one page that it describes.
    if size < series.size and key.dataoffsets[0] + series.nbytes > key.parent.filehandle.size:
        raise InputError(f"{path}: a TIFF that is cut short: it promises {series.nbytes} bytes of pixels; {_CURE}")


def _check_jpeg(tables: bytes | None, data: bytes, path: Path) -> None:
    """Refuse a segment of which a decoder would have to make up a part, and say nothing."""
    stream = data if tables is None else tables[:-2] + data[2:]  # but for the marks of an end and of a beginning
    try:
        colours = simplejpeg.decode_jpeg_header(stream)[2]
        simplejpeg.decode_jpeg(stream, colorspace="GRAY" if colours == "Gray" else "RGB")
    except ValueError as error:
        if "nsupported" in str(error):
            return  # of a kind, lossless say, that only tifffile's decoder knows
        raise InputError(f"{path}: a TIFF whose JPEG is damaged ({shorten(error)}); {_CURE}") from error


def _split_samples(
    page: NDArray[Any], colours: int, extras: list[int], keyframe: tifffile.TiffPage
) -> list[NDArray[Any]]:
    """Return the pictures of (H, W, samples): its colour, with its opacity if it has one, and the other stains.

    In all of them more is brighter, and the bits fill the type.
    """
    opacity = [i for i, kind in enumerate(extras, colours) if kind == _OPACITY]
    stains = [i for i, kind in enumerate(extras, colours) if kind not in (_PREMULTIPLIED, _OPACITY)]
    photometric = _name(keyframe.photometric)
    if photometric == "PALETTE":
        table = np.asarray(keyframe.colormap)
        # It has 16 bits for each colour; some programs fill only the lower 8.
        colour = (table if table.max() < 256 else table >> 8).astype(np.uint8).T[page[..., 0].astype(np.intp)]
    else:
        page = _fill_bits(page, keyframe.bitspersample)
        colour = page[..., :colours]
    if photometric == "SEPARATED":
        colour = _mix_inks(colour)
    grey = [page[..., i] for i in stains]
    if photometric == "MINISWHITE":
        colour, *grey = (-part if part.dtype.kind == "f" else ~part for part in (colour, *grey))
    if opacity:
        colour = np.concatenate([colour, page[..., opacity]], axis=2)
    return [colour[..., 0] if colour.shape[2] == 1 else colour, *grey]


def _fill_bits(array: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return values of so many bits as such of all the bits of their type."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * 255
    spare = 8 * array.itemsize - bits
    if array.dtype.kind == "f" or spare <= 0:
        return array
    if array.dtype == np.uint8:
        return (array.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    return array << spare


def _mix_inks(array: NDArray[Any]) -> NDArray[Any]:
    """Return RGB of (H, W, 4), the shares of cyan, magenta, yellow and black ink of whole numbers without sign."""
    most = np.iinfo(array.dtype).max
    mixed = np.empty((*array.shape[:2], 3), array.dtype)
    for rows in split_rows(array):
        paper = (most - array[rows].astype(np.float64)) / most
        mixed[rows] = (paper[..., :3] * paper[..., 3:] * most).round()
    return mixed


def _name(value: Any) -> str:
    return getattr(value, "name", str(value))
