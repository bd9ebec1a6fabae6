"""What costs a finished run its points: which mistakes, on images of which type, at nuclei of which size.

`python -m pipeline.studies.causes [--run DIR]` mends one cause of mistakes at a time in the out-of-fold nuclei, and
writes results/causes.csv: by how much the mean AP would rise. A mistake that is mended makes others weigh less or more,
so the gains do not add up to what is missing.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.diameter import equivalent_diameter
from pipeline.errors import one_line_errors
from pipeline.experiments.runs import read_scores
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.metric import TWENTIETHS, Matches, Overlap, average_precision, pass_thresholds, tabulate_overlap
from pipeline.nuclei.submission import read_label_maps
from pipeline.studies.study import RESULTS, keep_table, make_run_parser

PATH = RESULTS / "causes.csv"
OUTLINE, MISFIT, MISSED, INVENTED, MERGED, SPLIT = CAUSES = (
    "outline", "misfit", "missed", "invented", "merged", "split",
)  # fmt: skip
_NAMES = np.array(CAUSES).dtype  # wide enough for each of them
# A nucleus whose IoU with another is no more than this has nothing to do with it.
_APART = 0.1
# Upper bounds of diameters, in px of the image as it is.
SIZES = {"below 10 px": 10.0, "10 to 20 px": 20.0, "20 to 40 px": 40.0, "above 40 px": np.inf}
ALL = "all"


class Mistakes(NamedTuple):
    """What is wrong with each nucleus of an image, by the names CAUSES.

    Attributes:
        truth: (n_truth,) str; of every true nucleus that was found OUTLINE: all else that can be wrong with it.
        passed: (n_truth,) int, how many of the ten thresholds its best IoU is above.
        spare: (n_spare,) str, of the predictions that are no hit at any threshold.
        is_spare: (n_predictions,) bool, which ones those are.
    """

    truth: NDArray[np.str_]
    passed: NDArray[np.int64]
    spare: NDArray[np.str_]
    is_spare: NDArray[np.bool_]


def find_mistakes(overlap: Overlap) -> Mistakes:
    """Name what is wrong with each nucleus of an image.

    A true nucleus is found where its IoU with a prediction is above 0.5; only its OUTLINE can be wrong. Any other is
    MERGED where a prediction has more than half of it and more than half of another; SPLIT where more than one
    prediction lies by more than half in it; MISSED where its IoU with each is at most 0.1; and else a MISFIT.

    A prediction that is no hit is MERGED where it has more than half of more than one true nucleus; SPLIT where it lies
    by more than half in one that is split, or that was found without it; a MISFIT where its IoU with a true MISFIT is
    above 0.1; and else INVENTED.
    """
    shared, areas = overlap.shared, overlap.truth_areas[:, None]
    union = areas + overlap.prediction_areas - shared
    passes = pass_thresholds(shared, union)
    is_found = passes.any(axis=(1, 2))
    is_spare: NDArray[np.bool_] = np.logical_not(passes.any(axis=(0, 2)))
    is_near = shared > _APART * union
    covers, lies_in = 2 * shared > areas, 2 * shared > overlap.prediction_areas
    merges = covers.sum(axis=0) > 1
    truth = np.full(len(shared), MISFIT, _NAMES)
    truth[~is_near.any(axis=1)] = MISSED
    truth[lies_in.sum(axis=1) > 1] = SPLIT
    truth[(covers & merges).any(axis=1)] = MERGED
    truth[is_found] = OUTLINE
    predictions = np.full(len(merges), INVENTED, _NAMES)
    predictions[(is_near & (truth == MISFIT)[:, None]).any(axis=0)] = MISFIT
    predictions[(lies_in & ((truth == SPLIT) | is_found)[:, None]).any(axis=0)] = SPLIT
    predictions[merges] = MERGED
    return Mistakes(truth, passes.sum(axis=(1, 2)), predictions[is_spare], is_spare)


def mend(mistakes: Mistakes, truth: NDArray[np.bool_], spare: NDArray[np.bool_]) -> float:
    """Return the AP of an image, were some true nuclei found to the pixel and some spare predictions gone.

    Args:
        mistakes: of the image.
        truth: (n_truth,) which true nuclei.
        spare: (n_spare,) which predictions.
    """
    passed = np.where(truth, len(TWENTIETHS), mistakes.passed)
    hits = (passed[:, None] > np.arange(len(TWENTIETHS))).sum(axis=0)
    predictions = int(np.count_nonzero(passed)) + int(np.count_nonzero(~spare))
    return float(average_precision(Matches(len(passed), predictions, hits)).mean())


def list_gains(overlap: Overlap) -> Iterator[dict[str, Any]]:
    """Yield for each cause and size, ALL among them, how many nuclei an image has of it, and what mending them gains.

    Counted are true nuclei, of INVENTED ones predictions; with OUTLINE those that are no hit at the highest threshold.
    Predictions go with their own size: a small piece of a large nucleus is small.
    """
    mistakes = find_mistakes(overlap)
    sizes = [_name_sizes(overlap.truth_areas), _name_sizes(overlap.prediction_areas[mistakes.is_spare])]
    nothing = [np.zeros(len(own), bool) for own in sizes]
    score = mend(mistakes, *nothing)
    for cause in CAUSES:
        faulty = (mistakes.truth == cause) & (mistakes.passed < len(TWENTIETHS)), mistakes.spare == cause
        for size in (ALL, *SIZES):
            truth, spare = (own & ((size == ALL) | (names == size)) for own, names in zip(faulty, sizes, strict=True))
            nuclei = int(np.count_nonzero(spare if cause == INVENTED else truth))
            yield {"cause": cause, "size": size, "nuclei": nuclei, "gain": mend(mistakes, truth, spare) - score}


def _name_sizes(areas: NDArray[np.int64]) -> NDArray[np.str_]:
    return np.array([*SIZES])[np.searchsorted([*SIZES.values()], equivalent_diameter(areas), side="right")]


def main() -> None:
    run = make_run_parser(__doc__ or "").parse_args().run
    split, scores = PreparedSplit.open(run / "data" / "prepared" / "train"), read_scores(run / "folds" / "scores.csv")
    types = dict(zip(scores["image_id"], scores["image_type"], strict=True))
    shapes = {name: split.shape_of(name) for name in types}
    rows = [
        {"image_type": image_type, **gain}
        for name, found in read_label_maps(run / "folds" / "oof.csv", shapes)
        for gain in list_gains(tabulate_overlap(split.label_map(name), found))
        for image_type in (ALL, types[name])
    ]
    by = pd.DataFrame(rows).groupby(["image_type", "cause", "size"], sort=False)
    table = by.agg(images=("gain", "size"), nuclei=("nuclei", "sum"), gain=("gain", "mean")).reset_index()
    keep_table(PATH, table)
    for columns in ("image_type", "size"):
        part = table[table["size" if columns == "image_type" else "image_type"] == ALL]
        print(part.pivot_table("gain", "cause", columns, sort=False).to_string(float_format=lambda gain: f"{gain:.3f}"))


if __name__ == "__main__":
    with one_line_errors():
        main()
