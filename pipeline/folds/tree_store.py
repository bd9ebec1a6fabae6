"""The second level's trees on the disk: a pack of the arrays of `Trees`, and of the features that they were taught by.

A pack without arrays says that there are none, and one decoding finds all nuclei.
"""

from pathlib import Path

import numpy as np

from pipeline.errors import InputError, shorten
from pipeline.files import atomic_path
from pipeline.images.store import Pack, PackWriter
from pipeline.nuclei.candidates import FEATURES
from pipeline.nuclei.trees import Trees

_FEATURES = "features"


def write_trees(path: Path, trees: Trees | None) -> None:
    """Write trees, or that there are none, to a pack; equal trees give equal bytes."""
    with atomic_path(path) as partial, PackWriter(partial) as pack:
        if trees is not None:
            pack.add(_FEATURES, np.array(FEATURES))
            for name, array in trees._asdict().items():
                pack.add(name, array)


def read_trees(path: Path) -> Trees | None:
    """Return the trees of a pack; None where it says that there are none.

    Raises:
        InputError: the pack is missing or damaged, or its trees were taught by other features than this code measures.
    """
    pack = Pack(path)
    if not len(pack):
        return None
    if tuple(pack.get(_FEATURES, ())) != FEATURES:
        raise InputError(f"{path}: trees of other features than this version measures; run the stage `evaluate` again")
    try:
        trees = Trees(**{name: np.array(pack[name]) for name in Trees._fields})
        trees.predict(np.zeros((1, len(FEATURES)), np.float32))
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: holds no trees ({shorten(error)}); run the stage `evaluate` again") from error
    return trees
