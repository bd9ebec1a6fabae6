"""The parts of a PNG: what its header says, and for who writes one by hand, its chunks.

Source: https://www.w3.org/TR/png-3, sections 5 (chunks) and 11 (what is in them).
"""

import struct
import zlib
from collections.abc import Iterator

from pipeline.errors import InputError
from pipeline.images.header import Header, read_orientation

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return the bytes of a chunk of the four letters `kind`."""
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)])


def read_png_header(data: bytes, name: str) -> Header:
    """Return what a PNG says of its image, after a look at all of its chunks.

    Raises:
        InputError: it is cut short, a chunk is damaged, it has no pixels, or several frames.
    """
    chunks = _split_chunks(data, name)
    kind, first = next(chunks, (b"", b""))
    if kind != b"IHDR" or len(first) != 13:
        raise InputError(f"{name}: a PNG without a header; replace the file")
    width, height = struct.unpack(">II", first[:8])
    if width == 0 or height == 0:
        raise InputError(f"{name}: a PNG of zero size ({height} x {width} px); replace the file")
    orientation = 1
    for kind, content in chunks:
        if kind == b"eXIf":
            orientation = read_orientation(content, name)
        elif kind == b"acTL" and content[:4] != b"\0\0\0\1":
            raise InputError(f"{name}: an animated PNG; save its frames as files, or as the pages of a TIFF")
    return Header((height, width), orientation)


def _split_chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the content of every chunk up to the last, IEND; the pixels' own come empty."""
    place, kind = len(PNG_SIGNATURE), b""
    view = memoryview(data)
    while kind != b"IEND":
        if place + 12 > len(data):
            raise InputError(f"{name}: a PNG that is cut short ({len(data)} bytes); replace the file")
        (length,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data):
            raise InputError(f"{name}: a PNG that is cut short ({len(data)} bytes); replace the file")
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(view[place + 4 : end]):
            raise InputError(f"{name}: a PNG that is damaged (the checksum of its {kind!r}); replace the file")
        yield kind, b"" if kind == b"IDAT" else data[place + 8 : end]
        place = end + 4
