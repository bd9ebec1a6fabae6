"""The images of files, one after another, and what became of each.

In: paths of files. Out: images with the names of their results; what is wrong with a file is an outcome like any other.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, explain_exhaustion, shorten
from pipeline.images.image_file import read_images
from pipeline.progress import Bar, say


class Opened(NamedTuple):
    """An image (H, W, 3) uint8 RGB, the name of its results, and the file that it is of."""

    path: Path
    name: str
    image: NDArray[np.uint8]


class Outcome(NamedTuple):
    """What became of an image, or of a file that gives none.

    Attributes:
        path: the file.
        name: of its results.
        nuclei: how many were found; None where it failed.
        fault: what went wrong, and what to do; empty where nothing did.
        is_lasting: whether it is the file's own, and would go wrong in any try.
        seconds: that it took, reading aside.
    """

    path: Path
    name: str
    nuclei: int | None
    fault: str
    is_lasting: bool
    seconds: float


def read_all(
    paths: Sequence[Path], max_pixels: int, channel: int | None, faults: list[Outcome], bar: Bar
) -> Iterator[Opened]:
    """Yield the images of all files as `read_images` does, and append what is wrong with a file to `faults`.

    `bar` expects an image of each file; it is told of every page more, and of files that give none. Of the first file
    with several channels it is said what is made of them.
    """
    read: set[str] = set()
    told = channel is not None
    for path in paths:
        pages = 0
        try:
            for name, image, channels in read_images(path, max_pixels, channel):
                if channels > 1 and not told:
                    say(f"{path}: {channels} channels, each an image of its own; `--channel N` takes one, from 0 on")
                    told = True
                if name in read:
                    raise InputError(f"{path}: its results would be named {name}, as others are; use another --out")
                read.add(name)
                pages += 1
                if pages > 1:
                    bar.expect(1)
                yield Opened(path, name, image)
                del image
        except Exception as error:
            faults.append(Outcome(path, path.stem, None, explain_fault(path, path.stem, error), _is_own(error), 0.0))
        if pages == 0:
            bar(1)


def _is_own(error: Exception) -> bool:
    return isinstance(error, InputError) and explain_exhaustion(error) is None


def explain_fault(path: Path, name: str, error: Exception) -> str:
    """Return in a line what went wrong with a file, or with the page `name` of it, and what to do."""
    if isinstance(error, InputError):
        text = str(error)
    elif exhausted := explain_exhaustion(error):
        text = exhausted
    elif isinstance(error, OSError):
        text = f"cannot be read ({error.strerror or shorten(error)}); check the file and its disk"
    else:
        text = f"fails with {type(error).__name__} ({shorten(error)}); save it anew as an 8-bit TIFF or PNG"
    if text.startswith(f"{path}:"):
        return text
    return f"{path}: {text}" if name == path.stem else f"{path}: {name}: {text}"
