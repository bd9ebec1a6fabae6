"""The cross-validation's nuclei: every image's found by what the other folds chose and taught.

In: out-of-fold predictions, true label maps, and the fold of each image. Out: the decodings that were chosen, and label
maps, one at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.finder import CandidateFinder
from pipeline.folds.predictions import Predictions
from pipeline.folds.second_level import find_held_out, fit_second_level, rate_images
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.decoding import Decoding
from pipeline.nuclei.metric import Matches
from pipeline.nuclei.signals import Signals
from pipeline.nuclei.trees import Trees
from pipeline.nuclei.tuning import CrossFit, count_decodings, cross_fit, decoding_grid, score_decodings
from pipeline.params import DecodeParams
from pipeline.progress import track


class HeldOutNuclei(NamedTuple):
    """What was chosen on the other folds, and the nuclei that it finds.

    Attributes:
        choices: all decodings that were tried.
        fit: which of them was chosen.
        decoded: the matches of each image's nuclei by that decoding alone, in the order of the split.
        found: (image_id, label map (H, W) int32, signals) in that order, found as they are asked for.
        trees: of the second level, taught by all images, for images that are none of these; None without candidates.
    """

    choices: list[Decoding]
    fit: CrossFit
    decoded: list[Matches]
    found: Iterator[tuple[str, NDArray[np.int32], Signals | None]]
    trees: Trees | None


def cross_validate(
    predictions: Predictions,
    split: PreparedSplit,
    fold_of: Mapping[str, int],
    decode: DecodeParams,
    finder: CandidateFinder,
    candidates: Path,
    workers: int,
) -> HeldOutNuclei:
    """Choose a decoding and fit a second-level model for each fold on the others, and find every image's nuclei.

    Args:
        predictions: of the split's images, none by a network that saw the image.
        split: the images, with their label maps.
        fold_of: the fold of each.
        decode: the decodings to choose from.
        finder: finds the candidates that the second level chooses among.
        candidates: the file to write them to; they are read from there, so that memory does not grow with the images.
        workers: processes.
    """
    choices, image_ids = decoding_grid(decode), split.image_ids
    folds = {image_id: fold_of[image_id] for image_id in image_ids}
    items = ((name, predictions[name][0], split.label_map(name)) for name in image_ids)
    counts = count_decodings(items, choices, workers, len(image_ids))
    fit = cross_fit(score_decodings(counts), np.array(list(folds.values())))
    decoded = [image[fit.on_others[fold]] for image, fold in zip(counts, folds.values(), strict=True)]
    write_candidates(candidates, rate_images(predictions, split, finder, workers))
    decodings = {fold: choices[index] for fold, index in fit.on_others.items()}
    store = CandidateStore(candidates)
    found = find_held_out(store, predictions, folds, decodings, finder.select)
    (trees,) = fit_second_level(store, [sorted(store)], finder.select)
    return HeldOutNuclei(choices, fit, decoded, track(found, "choose nuclei", len(image_ids)), trees)


def describe_decoding(choices: Sequence[Decoding], fit: CrossFit) -> dict[str, Any]:
    """Return the chosen decoding parameters, as `decoding.json` holds them: on all folds, and for each fold.

    `finder.read_decodings` reads them.
    """
    folds = {str(fold): asdict(choices[index]) for fold, index in fit.on_others.items()}
    return {"all": asdict(choices[fit.on_all]), "folds": folds}
