"""The cross-validation's nuclei: every image's found by what the other folds chose and taught.

In: out-of-fold predictions, true label maps, and the fold of each image. Out: the decodings that were chosen, and label
maps, one at a time.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import scratch_folder
from pipeline.folds.blend import Members, Picks, Weights
from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.finder import CandidateFinder
from pipeline.folds.predictions import Stored
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
        found: (image_id, label map (H, W) int32, signals) in that order, of the folds that were asked for, found as
            they are asked for.
        trees: of the second level, taught by all images, for images that are none of these; None without candidates.
    """

    choices: list[Decoding]
    fit: CrossFit
    decoded: list[Matches]
    found: Iterator[tuple[str, NDArray[np.int32], Signals | None]]
    trees: Trees | None


def cross_validate(
    predictions: Stored,
    split: PreparedSplit,
    fold_of: Mapping[str, int],
    decode: DecodeParams,
    finder: CandidateFinder,
    candidates: Path,
    workers: int,
    wanted: Collection[int] | None = None,
    keeps_trees: bool = True,
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
        wanted: the folds whose nuclei are found; None for all.
        keeps_trees: whether trees are fitted on all images too.
    """
    choices, image_ids = decoding_grid(decode), split.image_ids
    folds = {image_id: fold_of[image_id] for image_id in image_ids}
    items = ((name, predictions[name][0], split.label_map(name)) for name in image_ids)
    counts = count_decodings(items, choices, workers, len(image_ids))
    fit = cross_fit(score_decodings(counts), np.array(list(folds.values())))
    decoded = [image[fit.on_others[fold]] for image, fold in zip(counts, folds.values(), strict=True)]
    write_candidates(candidates, rate_images(predictions, split, finder, workers))
    decodings = {fold: choices[index] for fold, index in fit.on_others.items() if wanted is None or fold in wanted}
    store = CandidateStore(candidates)
    found = find_held_out(store, predictions, folds, decodings, finder.select)
    (trees,) = fit_second_level(store, [sorted(store)], finder.select) if keeps_trees else [None]
    count = sum(fold in decodings for fold in folds.values())
    return HeldOutNuclei(choices, fit, decoded, track(found, "choose nuclei", count), trees)


def cross_validate_blend(
    members: Members,
    weights: Weights,
    split: PreparedSplit,
    fold_of: Mapping[str, int],
    decode: DecodeParams,
    finder: CandidateFinder,
    candidates: Path,
    workers: int,
) -> HeldOutNuclei:
    """Do as `cross_validate` with predictions that are weighed, for each fold, by what the other folds chose.

    Candidates, decoding and trees of a fold are all of predictions weighed so: its truth decides nothing of them. Those
    that stay, for images that no network saw, are of the weights that all folds chose.

    Args:
        members: their out-of-fold predictions.
        weights: the weights that were chosen.
        split: as there, and the rest too.
    """

    def validate(picks: Picks, path: Path, wanted: Collection[int] | None) -> HeldOutNuclei:
        is_last = path == candidates
        return cross_validate(members.blend(picks), split, fold_of, decode, finder, path, workers, wanted, is_last)

    alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for fold, picks in weights.on_others.items():
        alike.setdefault(tuple(picks.items()), []).append(fold)
    own = alike.pop(tuple(weights.on_all.items()), [])
    if not alike:
        return validate(weights.on_all, candidates, None)
    every = validate(weights.on_all, candidates, own)
    runs = dict.fromkeys(own, every)
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(candidates))
        for number, (others, folds) in enumerate(alike.items()):
            runs |= dict.fromkeys(folds, validate(dict(others), scratch / f"{number}.npz", folds))
        left = stack.pop_all()  # candidates are read for as long as nuclei are found
    places = [fold_of[image_id] for image_id in split.image_ids]
    fit = CrossFit(every.fit.on_all, {fold: run.fit.on_others[fold] for fold, run in sorted(runs.items())})
    decoded = [runs[fold].decoded[place] for place, fold in enumerate(places)]

    def find() -> Iterator[tuple[str, NDArray[np.int32], Signals | None]]:
        with left:
            yield from (next(runs[fold].found) for fold in places)

    return HeldOutNuclei(every.choices, fit, decoded, find(), every.trees)


def describe_choices(choices: Sequence[Decoding], fit: CrossFit, weights: Weights) -> dict[str, Any]:
    """Return the chosen decoding parameters and weights, as `decoding.json` holds them: on all folds, and for each.

    `finder.read_decodings` and `blend.read_weights` read them.
    """
    folds = {str(fold): asdict(choices[index]) for fold, index in fit.on_others.items()}
    picks = {str(fold): picks for fold, picks in weights.on_others.items()}
    return {"all": asdict(choices[fit.on_all]), "folds": folds, "members": {"all": weights.on_all, "folds": picks}}
