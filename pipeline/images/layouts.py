"""How images and labels may lie in an archive: one more layout is one more module and an entry here."""

from collections.abc import Callable, Iterator

from pipeline.errors import InputError
from pipeline.images.competition import read_competition
from pipeline.images.packed import read_packed
from pipeline.images.pairs import read_pairs
from pipeline.images.source import PreparedImage, Source
from pipeline.images.stack import read_stack

# Yields the images of an archive, each once, sorted by image_id, or by source and image_id where their rows name a
# source; ids pass `check_image_id`.
ReadLayout = Callable[[Source], Iterator[PreparedImage]]

LAYOUTS: dict[str, ReadLayout] = {
    "competition": read_competition,
    "pairs": read_pairs,
    "stack": read_stack,
    "packed": read_packed,
}


def find_layout(name: str, section: str) -> ReadLayout:
    """Return what reads archives of a layout.

    Raises:
        InputError: no layout is called so; `section` is what params.yaml calls the source.
    """
    if name not in LAYOUTS:
        raise InputError(f"params.yaml: {section}.layout is {name!r}; give one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
