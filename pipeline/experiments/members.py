"""What an ensemble's members are worth: each alone, what each adds to the others, and how far they agree.

In: the members' out-of-fold predictions, and the weights that were chosen. Out: for cv.json and the report, a summary.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.experiments.statistics import paired_bootstrap
from pipeline.files import scratch_folder
from pipeline.folds.blend import Members, Picks, Weights
from pipeline.folds.cross_validation import cross_validate
from pipeline.folds.finder import CandidateFinder
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.metric import Matches, average_precision, count_matches
from pipeline.nuclei.signals import Signals
from pipeline.nuclei.tuning import count_decodings, cross_fit, decoding_grid, score_decodings
from pipeline.params import DecodeParams, EvaluateParams


def describe_members(
    members: Members,
    weights: Weights,
    scores: pd.DataFrame,
    decoded: Sequence[Matches],
    split: PreparedSplit,
    decode: DecodeParams,
    finder: CandidateFinder,
    params: EvaluateParams,
    scratch: Path,
    workers: int,
) -> dict[str, Any]:
    """Return what cv.json says of several members; of one, nothing.

    `members` has for each the `weight` that all folds chose, its own `cv_map`, by its own decoding and second level,
    and what it `adds`: the ensemble's score less that of the ensemble without it, both by one cross-fitted decoding;
    null for one that does not count, or alone does for some fold. `agreement` has for each pair the mean over images of
    the score that the nuclei of one get where those of the other are taken for true. `best_member` scores most alone,
    and `gain` is by how much the ensemble scores more, with its 95 % interval.

    Args:
        members: their out-of-fold predictions.
        weights: that were chosen.
        scores: image_id, group, fold, and the ensemble's ap; a row per image, in the order of the split.
        decoded: the matches of the ensemble's nuclei by one cross-fitted decoding, in that order.
        split: the images, with their label maps.
        decode: the decodings to choose from.
        finder: finds the candidates that the second level chooses among.
        params: how intervals are found.
        scratch: beside which candidates are laid, and removed again.
        workers: processes.
    """
    names = list(members.stored)
    if len(names) < 2:
        return {}
    fold_of = dict(zip(scores["image_id"], scores["fold"].tolist(), strict=True))
    alone, agreement = _score_alone(members, split, fold_of, decode, finder, scratch, workers)

    def interval(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float, float]:
        return paired_bootstrap(first, second, scores["group"], params.bootstrap, params.seed)

    every = np.array([average_precision(matches).mean() for matches in decoded])
    described: dict[str, dict[str, Any]] = {}
    for name in names:
        own: dict[str, Any] = {"weight": weights.on_all.get(name, 0), "cv_map": float(alone[name].mean())}
        own |= dict.fromkeys(("adds", "adds_low", "adds_high"))
        without = _leave_out(weights, name)
        if without is not None:
            found = interval(_score_decoded(members, without, split, fold_of, decode, workers), every)
            own |= dict(zip(("adds", "adds_low", "adds_high"), found, strict=True))
        described[name] = own
    best = max(names, key=lambda name: described[name]["cv_map"])
    gain = dict(zip(("gain", "gain_low", "gain_high"), interval(alone[best], scores["ap"].to_numpy()), strict=True))
    return {"members": described, "agreement": agreement, "best_member": best} | gain


def _leave_out(weights: Weights, name: str) -> Weights | None:
    """Return the weights of the others; None where a member counts for nothing, or is all that counts for some fold."""

    def rest(picks: Picks) -> Picks:
        return {other: weight for other, weight in picks.items() if other != name}

    left = Weights(rest(weights.on_all), {fold: rest(picks) for fold, picks in weights.on_others.items()})
    return left if all(left.on_others.values()) and left.on_others != weights.on_others else None


def _score_alone(
    members: Members,
    split: PreparedSplit,
    fold_of: Mapping[str, int],
    decode: DecodeParams,
    finder: CandidateFinder,
    scratch: Path,
    workers: int,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Return the score of each image by each member alone, and the agreement of each pair of members."""
    names = list(members.stored)
    pairs = list(combinations(range(len(names)), 2))
    alone, agreed = [], []
    with scratch_folder(scratch) as folder:

        def find(name: str) -> Iterator[tuple[str, NDArray[np.int32], Signals | None]]:
            own, path = members.blend({name: 1}), folder / f"{name}.npz"
            return cross_validate(own, split, fold_of, decode, finder, path, workers, keeps_trees=False).found

        found = [find(name) for name in names]
        for results in zip(*found, strict=True):
            truth, label_maps = split.label_map(results[0][0]), [result[1] for result in results]
            alone.append([_score(truth, label_map) for label_map in label_maps])
            agreed.append([_score(label_maps[one], label_maps[other]) for one, other in pairs])
    by_member = dict(zip(names, np.array(alone).T, strict=True))
    means = np.array(agreed).mean(axis=0).tolist()
    return by_member, {f"{names[one]}, {names[other]}": mean for (one, other), mean in zip(pairs, means, strict=True)}


def _score(truth: NDArray[np.integer], label_map: NDArray[np.integer]) -> float:
    return float(average_precision(count_matches(truth, label_map)).mean())


def _score_decoded(
    members: Members,
    weights: Weights,
    split: PreparedSplit,
    fold_of: Mapping[str, int],
    decode: DecodeParams,
    workers: int,
) -> NDArray[np.float64]:
    """Return the score of each image by one decoding: chosen on the other folds, of predictions weighed as its own."""
    image_ids, choices = split.image_ids, decoding_grid(decode)
    places = np.array([fold_of[name] for name in image_ids])
    found = np.zeros(len(places))
    for picks in {tuple(picks.items()): picks for picks in weights.on_others.values()}.values():
        blend = members.blend(picks)
        items = ((name, blend[name][0], split.label_map(name)) for name in image_ids)
        scores = score_decodings(count_decodings(items, choices, workers, len(image_ids)))
        fit = cross_fit(scores, places)
        own = [weights.on_others[fold] == picks for fold in places]
        found[own] = scores[np.arange(len(places)), [fit.on_others[fold] for fold in places]][own]
    return found


def format_members(cv: Mapping[str, Any]) -> str:
    """Return what cv.json says of several members as lines of text."""
    rows: list[Sequence[str]] = [("member", "weight", "alone", "adds")]
    for name, own in cv["members"].items():
        adds = (
            "-" if own["adds"] is None else f"{own['adds']:+z.3f} ({own['adds_low']:+z.3f} .. {own['adds_high']:+z.3f})"
        )
        rows.append((name, str(own["weight"]), f"{own['cv_map']:.3f}", adds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{pair} agree by {value:.3f}" for pair, value in cv["agreement"].items()]
    spread = f"95 % interval {cv['gain_low']:+z.3f} .. {cv['gain_high']:+z.3f}"
    return "\n".join([*lines, f"together {cv['gain']:+z.3f} beyond the best alone, {cv['best_member']} ({spread})"])
