"""A stack's membranes: the challenge's scores of out-of-fold predictions, and these predictions as a TIFF stack.

In: out-of-fold probabilities and true label maps. Out: pooled scores; a multi-page TIFF of the probability of being
inside a cell, as the ISBI 2012 challenge took it: 1 inside, 0 membrane.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.folds.blend import Members, OutOfFold, read_weights
from pipeline.folds.predictions import Predictions, Stored
from pipeline.folds.table import UNSCORED, read_folds
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.decoding import BOUNDARY, average_zooms
from pipeline.nuclei.membrane_metric import SliceCounts, count_slice, score_stack
from pipeline.parallel import map_in_order
from pipeline.params import TargetsParams
from pipeline.progress import track


def find_inside(probabilities: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probability (H, W) in [0, 1] of being inside a cell: 1 - the boundary channel, the zooms' mean.

    Args:
        probabilities: (S, H, W, 3), value / 255.
    """
    boundary = average_zooms(probabilities)[..., BOUNDARY]
    return 1 - boundary.astype(np.float32) / np.float32(255)


def score_membranes(predictions: Stored, split: PreparedSplit, workers: int) -> dict[str, float]:
    """Return the challenge's scores of a stack; see `score_stack`.

    Args:
        predictions: of every slice.
        split: the slices, with their label maps.
        workers: processes that count.
    """
    jobs = ((label_map, find_inside(predictions[name][0])) for name, label_map in split.label_maps())
    counts = map_in_order(_count_job, jobs, workers)
    return score_stack(track(counts, "score membranes", len(split)))


def _count_job(job: tuple[NDArray[np.integer], NDArray[np.float32]]) -> SliceCounts:
    return count_slice(*job)


def format_membranes(scores: Mapping[str, float]) -> str:
    """Return the challenge's scores as a line of text."""
    named = {"v_rand": "V_rand", "v_info": "V_info", "rand_error": "Rand error", "pixel_error": "pixel error"}
    parts = [f"{text} {scores[name]:.4f} (at {scores[f'{name}_threshold']:.1f})" for name, text in named.items()]
    return "the stack, each score at its best threshold: " + ", ".join(parts)


def write_stack(
    out: Path, targets: TargetsParams, members: Sequence[str], ids: Sequence[int], folds: Path
) -> tuple[int, int, int]:
    """Write the out-of-fold probabilities of a stack to the TIFF `out`, and return its pages, height and width.

    Args:
        out: multi-page TIFF, float32 in [0, 1]: 1 is the inside of a cell, 0 membrane; pages in the order of the stack.
        targets: what the run's networks were asked for.
        members: the run's members.
        ids: its folds.
        folds: its `folds` folder, with `folds.csv`, `decoding.json` and `oof/`.

    Raises:
        InputError: the run did not learn membranes, predictions are missing, or slices differ in size.
    """
    if targets.boundary != "membrane":
        raise InputError(
            f"params.yaml: targets.boundary is {targets.boundary}: this run learnt no membranes; "
            "`dvc exp run -S recipe=isbi2012` makes one that does"
        )
    table = read_folds(folds / "folds.csv")
    scored = table[table["stratum"] != UNSCORED]
    image_ids = scored["image_id"].sort_values().tolist()
    fold_of = dict(zip(scored["image_id"], scored["fold"], strict=True))
    stored = {name: Predictions(folds / "oof" / name / f"{fold}.npz" for fold in ids) for name in members}
    weights = read_weights(folds / "decoding.json", members, ids)
    predictions = OutOfFold(Members(stored, dict.fromkeys(members, 0.0), 0.0), weights, fold_of)  # zooms are not asked
    height, width = find_inside(predictions[image_ids[0]][0]).shape

    def pages() -> Iterator[NDArray[np.float32]]:
        for name in image_ids:
            page = find_inside(predictions[name][0])
            if page.shape != (height, width):
                raise InputError(f"image {name} is {page.shape}, the first one {(height, width)}: no stack of one size")
            yield page

    shape = (len(image_ids), height, width)
    with atomic_path(out) as partial:
        tifffile.imwrite(partial, pages(), shape=shape, dtype=np.float32, compression="zlib", photometric="minisblack")
    return shape
