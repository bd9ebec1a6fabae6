"""The second level's trees on the disk: a pack of the arrays of `Trees`, and of the features that they were taught by.

A pack without arrays says that there are none, and one decoding finds all nuclei.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
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
    except KeyError as error:
        raise InputError(f"{path}: has no {error}; run the stage `evaluate` again") from error
    if not _are_whole(trees):
        raise InputError(f"{path}: its nodes do not make trees; run the stage `evaluate` again")
    return trees


def _are_whole(trees: Trees) -> bool:
    """Whether every node leads to nodes that are there and asks for a feature that is, in so many steps."""
    nodes = len(trees.value)
    return (
        trees.start.shape == trees.depth.shape == (1,)
        and trees.feature.shape == trees.threshold.shape == trees.value.shape == (nodes,)
        and (trees.children.shape, trees.roots.ndim) == ((nodes, 2), 1)
        and _lie_below(trees.children, nodes)
        and _lie_below(trees.roots, nodes)
        and _lie_below(trees.feature, len(FEATURES))
        and _lie_below(trees.depth, nodes)
    )


def _lie_below(numbers: NDArray[Any], end: int) -> bool:
    return numbers.dtype.kind == "i" and bool(((numbers >= 0) & (numbers < end)).all())
