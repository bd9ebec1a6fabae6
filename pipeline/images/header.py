"""What an image file says of its image before anything is decoded: its size, and how it is to be turned."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError, shorten

_ORIENTATION = 274  # the tag, in TIFF as in EXIF
# By its value, as what is stored becomes what is shown: swap rows and columns, then reverse the rows, the columns.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Header(NamedTuple):
    """The (H, W) of an image as it is stored, px, and its orientation, 1 .. 8."""

    size: tuple[int, int]
    orientation: int


def read_orientation(exif: bytes, name: str) -> int:
    """Return the orientation that EXIF data name; 1, as it is stored, where they name none.

    Raises:
        InputError: they cannot be read.
    """
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(_ORIENTATION, 1))
    except Exception as error:  # Pillow raises whatever broken data lead to
        raise InputError(
            f"{name}: its EXIF data do not say how to turn it ({shorten(error)}); save the image without them"
        ) from error


def turn_upright(array: NDArray[Any], orientation: int, name: str) -> NDArray[Any]:
    """Return an image (H, W, ...) as viewers show it, by its orientation; 0 says nothing, and nothing is done.

    Raises:
        InputError: there is no such orientation.

    Source: TIFF 6.0, section 8, "Orientation"; EXIF 2.3 has the same.
    """
    if orientation not in (0, *_TURNS):
        raise InputError(f"{name}: its orientation is {orientation}; give one of 1 .. 8, or none")
    if orientation in (0, 1):
        return array
    swap, rows, columns = _TURNS[orientation]
    turned = array.swapaxes(0, 1) if swap else array
    return np.ascontiguousarray(turned[:: -1 if rows else 1, :: -1 if columns else 1])
