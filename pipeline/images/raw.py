"""Image files to arrays: any PNG or JPEG to uint8 RGB.

In: the bytes of a file. Out: `(H, W, 3)` uint8 images.

How an image becomes uint8 RGB:
- one channel is repeated three times; a palette is looked up; channels are kept as they are;
- 16 bits are stretched linearly, all channels alike, so that the 0.1th percentile becomes 0 and the 99.9th 255:
  microscopes rarely fill 16 bits, and a plain `>> 8` would turn such images black;
- an alpha channel that is constant is dropped; a real one is composited over black, as is usual for no signal.
"""

import struct
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten
from pipeline.images.png import PNG_SIGNATURE

_PNG_START = PNG_SIGNATURE + b"\0\0\0\rIHDR"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG = b"\xff\xd8\xff"
# Markers of table B.1 of ITU-T T.81: those that start a frame, the start of a scan, and those without parameters.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_BARE = 0xDA, frozenset([0x01, *range(0xD0, 0xD9)])
_MAX_SCANS = 100  # each takes a pass over the whole image, and a few bytes; encoders make about ten
_STRETCH_PERCENTILES = (0.1, 99.9)  # robust to a few hot or dead pixels
_STRIP_VALUES = 2**20  # 8 MB in floats


def decode_image(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Decode an image file to (H, W) or (H, W, C) uint8 or uint16, channels in the order R, G, B, alpha.

    The size in the header is checked before anything is decoded; other formats, whose headers would have to be checked
    too, are refused.

    Raises:
        InputError: the file is damaged, neither PNG nor JPEG, empty, or larger than `max_pixels`.
    """
    if data.startswith(PNG_SIGNATURE):
        height, width = _read_png_size(data, name)
    elif data.startswith(_JPEG):
        height, width = _read_jpeg_size(data, name)
    else:
        raise InputError(f"{name}: does not decode: neither PNG nor JPEG ({data[:4]!r}); convert or replace the file")
    return decode_sized(data, name, (height, width), max_pixels)


def decode_sized(data: bytes, name: str, size: tuple[int, int], max_pixels: int) -> NDArray[Any]:
    """Decode an image file whose header says `size`, (H, W), as `decode_image` does, of any format of OpenCV's.

    Raises:
        InputError: the file is damaged, empty, of another size, or larger than `max_pixels`.
    """
    height, width = size
    if height * width > max_pixels:
        raise InputError(
            f"{name}: its header says {height} x {width} px, more than max_pixels = {max_pixels}; "
            "raise housekeeping.max_pixels (for the command `predict`, predict_max_pixels) if the image is real"
        )
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"{name}: does not decode ({shorten(error.err)}); replace the file") from error
    if array is None or array.size == 0:
        raise InputError(f"{name}: does not decode as an image; replace the file")
    if array.shape[:2] != (height, width) or array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{name}: decodes to {array.shape} {array.dtype}, and not as its header says; replace the file"
        )
    if array.ndim == 3:
        code = cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB
        # In place, where OpenCV copies what it is given: a large image is not there twice.
        for rows in _split_rows(array):
            cv2.cvtColor(array[rows], code, dst=array[rows])
    return array


def _read_png_size(data: bytes, name: str) -> tuple[int, int]:
    """Return (H, W) of a PNG, neither 0, by its header (section 11.2.2 of the PNG specification)."""
    if len(data) < 33 or not data.startswith(_PNG_START) or _PNG_END not in data:
        raise InputError(f"{name}: a PNG that is cut short ({len(data)} bytes); replace the file")
    width, height = struct.unpack(">II", data[16:24])
    if width == 0 or height == 0:
        raise InputError(f"{name}: a PNG of zero size ({height} x {width} px); replace the file")
    return height, width


def _read_jpeg_size(data: bytes, name: str) -> tuple[int, int]:
    """Return (H, W) of a JPEG by its frame header, which must come before any scan (sections B.1 and B.2 of T.81)."""
    if data.count(bytes([0xFF, _JPEG_SCAN])) > _MAX_SCANS:
        raise InputError(f"{name}: a JPEG of more than {_MAX_SCANS} scans; save it anew")
    place = 2
    while (place := data.find(0xFF, place) + 1) and place + 8 <= len(data):
        marker = data[place]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 4)
            return height, width
        if marker == _JPEG_SCAN:
            break
        if marker not in (0x00, 0xFF) and marker not in _JPEG_BARE:  # 0 and FF mark nothing
            place += 1 + max(2, struct.unpack_from(">H", data, place + 1)[0])
    raise InputError(f"{name}: a JPEG that is cut short ({len(data)} bytes); replace the file")


def to_rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn a decoded image (H, W) or (H, W, 1..4), of any real type, into (H, W, 3) uint8 RGB by the module's rules."""
    if array.ndim == 2:
        array = array[..., None]
    alpha = array[..., -1] if array.shape[2] in (2, 4) else None
    if alpha is not None:
        # As most of the competition's images are: numpy copies three channels of four slowly.
        is_usual = array.dtype == np.uint8 and array.shape[2] == 4
        array = cv2.cvtColor(array, cv2.COLOR_RGBA2RGB) if is_usual else array[..., :-1]
    if array.dtype != np.uint8:
        array = _stretch(array)
    if alpha is not None and alpha.min() != alpha.max():
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1.0
        composite = np.empty(array.shape, np.uint8)
        for rows in _split_rows(array):
            opacity = (alpha[rows, :, None].astype(np.float32) / opaque).clip(0, 1)
            composite[rows] = (array[rows] * opacity).round().astype(np.uint8)
        array = composite
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _stretch(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Bring the values of (H, W, C) between the two percentiles to 0 .. 255."""
    low, high = np.percentile(array, _STRETCH_PERCENTILES)
    factor = 255.0 / max(float(high - low), 1.0)
    stretched = np.empty(array.shape, np.uint8)
    for rows in _split_rows(array):
        stretched[rows] = np.clip((array[rows] - low) * factor, 0, 255).round().astype(np.uint8)
    return stretched


def _split_rows(array: NDArray[Any]) -> Iterator[slice]:
    """Yield the rows of an image in strips: floats of it all at once would be many times its size."""
    rows = max(1, _STRIP_VALUES // max(1, array[:1].size))
    return (slice(top, top + rows) for top in range(0, len(array), rows))
