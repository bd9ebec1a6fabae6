"""Image files of a user's own, of any format that is read here, to images.

In: the path of a PNG, a JPEG or a TIFF. Out: `(H, W, 3)` uint8 RGB images, one for each picture in the file; `tiff.py`
says what is a picture.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.images.jpeg import JPEG_SIGNATURE
from pipeline.images.png import PNG_SIGNATURE
from pipeline.images.raw import decode_image, to_rgb
from pipeline.images.tiff import Picture, is_tiff, read_pictures


class FileImage(NamedTuple):
    """An image of a file.

    Attributes:
        name: of the file, without its ending; with `.page000` and so on where there are several images in it.
        image: (H, W, 3) uint8 RGB; the caller's, to write on.
        channels: how many channels the file has.
    """

    name: str
    image: NDArray[np.uint8]
    channels: int


def read_images(path: Path, max_pixels: int, channel: int | None = None) -> Iterator[FileImage]:
    """Yield the images of a file, in its order.

    Args:
        path: of a PNG, a JPEG or a TIFF.
        max_pixels: of an image.
        channel: the only channel whose images are wanted, counted from 0; None for all.

    Raises:
        InputError: the file is of another format, empty, damaged, cut short, of more than `max_pixels` pixels, or
            without such a channel.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if is_tiff(start):
        pictures = read_pictures(path, max_pixels)
    elif start.startswith((PNG_SIGNATURE, JPEG_SIGNATURE)) or not start:
        pictures = [Picture(decode_image(path.read_bytes(), str(path), max_pixels), 0)]
    else:
        raise InputError(f"{path}: no PNG, JPEG or TIFF (it begins with {start!r}); save it as one of these")
    channels = 1 + max(picture.channel for picture in pictures)
    if channel is not None and not 0 <= channel < channels:
        raise InputError(f"{path}: no channel {channel}; it has {channels}, counted from 0")
    several = len(pictures) > 1
    for number in range(len(pictures)):
        array, of_channel = pictures.pop(0)
        if channel not in (None, of_channel):
            continue
        image = to_rgb(array)
        del array
        # What needed no change comes back as a view to read from; it is nobody else's.
        image.setflags(write=True)
        yield FileImage(f"{path.stem}.page{number:03d}" if several else path.stem, image, channels)
        del image
