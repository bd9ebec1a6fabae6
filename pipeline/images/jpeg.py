"""JPEG files: what the header says, and pixels, all of them there.

Source: ITU-T T.81, annex B.
"""

import struct

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten
from pipeline.images.header import Header, read_orientation

JPEG_SIGNATURE = b"\xff\xd8\xff"
# Markers of table B.1: those that start a frame, the start of a scan, and those without parameters.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _BARE = 0xDA, frozenset([0x01, *range(0xD0, 0xD9)])
_END = b"\xff\xd9"
_EXIF, _EXIF_START = 0xE1, b"Exif\0\0"
_MAX_SCANS = 100  # each takes a pass over the whole image, and a few bytes; encoders make about ten


def read_jpeg_header(data: bytes, name: str) -> Header:
    """Return what a JPEG says of its image before the frame header, which must come before any scan.

    Raises:
        InputError: it is cut short, or of more scans than any encoder makes.
    """
    place, orientation = 2, 1
    while (place := data.find(0xFF, place) + 1) and place + 8 <= len(data):
        marker = data[place]
        if marker in _FRAMES:
            # Up to the mark of the end: phones put films behind it.
            if data.count(bytes([0xFF, _SCAN]), place, data.find(_END, place)) > _MAX_SCANS:
                raise InputError(f"{name}: a JPEG of more than {_MAX_SCANS} scans; save it anew")
            height, width = struct.unpack_from(">HH", data, place + 4)
            return Header((height, width), orientation)
        if marker == _SCAN:
            break
        if marker not in (0x00, 0xFF) and marker not in _BARE:  # 0 and FF mark nothing
            length = max(2, struct.unpack_from(">H", data, place + 1)[0])
            content = data[place + 3 : place + 1 + length]
            if marker == _EXIF and content.startswith(_EXIF_START):
                orientation = read_orientation(content, name)
            place += 1 + length
    raise InputError(f"{name}: a JPEG that is cut short ({len(data)} bytes); replace the file")


def decode_jpeg(data: bytes, name: str) -> NDArray[np.uint8]:
    """Return the pixels of a JPEG, (H, W, 1 or 3) uint8, grey or RGB.

    Raises:
        InputError: it is damaged, also where a decoder would make up what is missing, or it is in CMYK, of which no
            standard says whether more is lighter or darker.
    """
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
        if colours in ("CMYK", "YCCK"):
            raise InputError(f"{name}: a JPEG in the colour space {colours}; save it as grey or RGB")
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="GRAY" if colours == "Gray" else "RGB"))
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{name}: a JPEG that is damaged ({shorten(error)}); replace the file") from error
