"""Image files to arrays: any PNG or JPEG to uint8 RGB.

In: the bytes of a file. Out: `(H, W, 3)` uint8 images.

How an image becomes uint8 RGB:
- one channel is repeated three times; a palette is looked up; channels are kept as they are;
- other types than 8 bits are stretched, by the rule of `contrast.py`: microscopes rarely fill 16 bits, and a plain
  `>> 8` would turn such images black;
- an alpha channel that is constant is dropped; a real one is composited over black, as is usual for no signal.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten
from pipeline.images.contrast import split_rows, to_levels
from pipeline.images.header import turn_upright
from pipeline.images.jpeg import JPEG_SIGNATURE, decode_jpeg, read_jpeg_header
from pipeline.images.png import PNG_SIGNATURE, read_png_header


def decode_image(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Decode an image file to (H, W) or (H, W, C) uint8 or uint16, channels in the order R, G, B, alpha, turned as the
    file says.

    The size in the header is checked before anything is decoded; other formats, whose headers would have to be checked
    too, are refused.

    Raises:
        InputError: the file is damaged, neither PNG nor JPEG, empty, or larger than `max_pixels`.
    """
    if not data:
        raise InputError(f"{name}: empty, 0 bytes; replace the file")
    if data.startswith(PNG_SIGNATURE):
        size, orientation = read_png_header(data, name)
        array = decode_sized(data, name, size, max_pixels)
    elif data.startswith(JPEG_SIGNATURE):
        size, orientation = read_jpeg_header(data, name)
        _check_size(size, name, max_pixels)
        array = decode_jpeg(data, name)
    else:
        raise InputError(f"{name}: does not decode: neither PNG nor JPEG ({data[:4]!r}); convert or replace the file")
    return turn_upright(array, orientation, name)


def decode_sized(data: bytes, name: str, size: tuple[int, int], max_pixels: int) -> NDArray[Any]:
    """Decode an image file whose header says `size`, (H, W), of any format of OpenCV's, as it is stored.

    Raises:
        InputError: the file is damaged, empty, of another size, or larger than `max_pixels`.
    """
    _check_size(size, name, max_pixels)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"{name}: does not decode ({shorten(error.err)}); replace the file") from error
    if array is None or array.size == 0:
        raise InputError(f"{name}: does not decode as an image; replace the file")
    if array.shape[:2] != size or array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{name}: decodes to {array.shape} {array.dtype}, and not as its header says; replace the file"
        )
    if array.ndim == 3:
        code = cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB
        # In place, where OpenCV copies what it is given: a large image is not there twice.
        for rows in split_rows(array):
            cv2.cvtColor(array[rows], code, dst=array[rows])
    return array


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise InputError(
            f"{name}: its header says {size[0]} x {size[1]} px, more than max_pixels = {max_pixels}; "
            "raise housekeeping.max_pixels (for the command `predict`, predict_max_pixels) if the image is real"
        )


def to_rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn a decoded image (H, W) or (H, W, 1..4), of any real type, into (H, W, 3) uint8 RGB by the module's rules."""
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] in (2, 4):
        array = _drop_alpha(array)
    return np.ascontiguousarray(np.broadcast_to(to_levels(array), (*array.shape[:2], 3)))


def _drop_alpha(array: NDArray[Any]) -> NDArray[Any]:
    """Return (H, W, 2 or 4) without its last channel, composited over black where that is not constant."""
    alpha = array[..., -1]
    # As most of the competition's images are: numpy copies three channels of four slowly.
    is_usual = array.dtype == np.uint8 and array.shape[2] == 4
    array = cv2.cvtColor(array, cv2.COLOR_RGBA2RGB) if is_usual else array[..., :-1]
    if alpha.min() == alpha.max():
        return array
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1.0
    composite = np.empty(array.shape, array.dtype)
    for rows in split_rows(array):
        opacity = (alpha[rows, :, None].astype(np.float64) / opaque).clip(0, 1)
        values = array[rows] * opacity
        composite[rows] = values if array.dtype.kind == "f" else values.round()
    return composite
