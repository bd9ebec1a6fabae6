"""The parts of a PNG, for who writes one by hand. In: what a chunk holds. Out: its bytes."""

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return the bytes of a chunk of the four letters `kind`.

    Source: https://www.w3.org/TR/png-3, section 5.3.
    """
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)])
