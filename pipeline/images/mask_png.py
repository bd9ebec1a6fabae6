"""The rows of a mask file that a nucleus is in, without decoding the others: hundreds of masks of an image are each as
large as the image, and nearly all of it is background.

In: the bytes of a PNG. Out: the used rows, or None where the file is not of the plain kind that masks are, or is
damaged in any way: the general decoder has the rules for those.
"""

import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from isal import igzip_lib, isal_zlib
from numpy.typing import NDArray

from pipeline.images.png import PNG_SIGNATURE, png_chunk

# Bit depth 8, greyscale, deflate, adaptive filters, not interlaced (section 11.2.2 of the PNG specification).
_PLAIN = bytes([8, 0, 0, 0, 0])
# They change no pixel of a greyscale PNG; any other chunk (tRNS for one) goes to the general decoder.
_HARMLESS = (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs")


class UsedRows(NamedTuple):
    """Rows `top` .. of an image of `shape`; all others are 0."""

    rows: NDArray[np.uint8]  # (h, W)
    top: int
    shape: tuple[int, int]  # (H, W)


def decode_used_rows(data: bytes, max_pixels: int) -> UsedRows | None:
    """Return the rows of a greyscale PNG between its first and its last that are not 0; h is 0 where all are.

    A row of zeros leaves nothing for the next row's filter to build on, so decoding can start at any row behind one.
    """
    parsed = _parse(data)
    if parsed is None:
        return None
    height, width, packed = parsed
    if not 0 < height * width <= max_pixels:
        return None
    lines = _inflate(packed, height * (width + 1))
    if lines is None:
        return None
    # Each line starts with its filter's number: one of another filter counts as used even if its values are 0.
    lines = lines.reshape(height, width + 1)
    _, top, _, count = cv2.boundingRect(lines)
    rows = _unfilter(lines[top : top + count], width) if count else np.zeros((0, width), np.uint8)
    return None if rows is None else UsedRows(rows, top, (height, width))


def _parse(data: bytes) -> tuple[int, int, bytes] | None:
    """Return height, width and the deflated lines of a plain greyscale PNG whose chunks are whole."""
    if not data.startswith(PNG_SIGNATURE):
        return None
    size, packed, position = None, [], len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data) or struct.unpack_from(">I", data, end)[0] != zlib.crc32(data[position + 4 : end]):
            return None
        if kind == b"IHDR" and length == 13 and data[end - 5 : end] == _PLAIN:
            width, height = struct.unpack_from(">II", data, position + 8)
            size = height, width
        elif kind == b"IDAT":
            packed.append(data[position + 8 : end])
        elif kind == b"IEND":
            return None if size is None else (*size, b"".join(packed))
        elif kind not in _HARMLESS:
            return None
        position = end + 4
    return None


def _inflate(packed: bytes, size: int) -> NDArray[np.uint8] | None:
    """Return exactly `size` bytes, or None where the stream holds another number or is damaged."""
    inflater = isal_zlib.decompressobj()
    try:
        lines = inflater.decompress(packed, max_length=size + 1)
    except igzip_lib.IsalError:  # type: ignore[misc]  # its stub gives an instance for the class
        return None
    return np.frombuffer(lines, np.uint8) if inflater.eof and len(lines) == size else None


def _unfilter(lines: NDArray[np.uint8], width: int) -> NDArray[np.uint8] | None:
    """Return (h, W) uint8 of filtered lines (h, W + 1), by way of a PNG that holds no other."""
    chunks = (
        (b"IHDR", struct.pack(">II", width, len(lines)) + _PLAIN),
        (b"IDAT", zlib.compress(lines.tobytes(), level=0)),
        (b"IEND", b""),
    )
    png = b"".join([PNG_SIGNATURE, *(png_chunk(kind, content) for kind, content in chunks)])
    rows = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return None if rows is None else np.asarray(rows, np.uint8)
