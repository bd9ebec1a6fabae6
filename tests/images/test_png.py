"""Chunks written by hand are those that a decoder reads."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from pipeline.images.png import PNG_SIGNATURE, png_chunk


def test_the_last_chunk_of_every_png():
    assert png_chunk(b"IEND", b"") == b"\0\0\0\0IEND\xaeB`\x82"


def test_pillow_reads_an_image_of_such_chunks():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    lines = np.pad(pixels, ((0, 0), (1, 0)))  # filter 0 before every line
    header = struct.pack(">IIBBBBB", 4, 3, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    data = PNG_SIGNATURE + b"".join(png_chunk(kind, content) for kind, content in chunks)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
