"""evaluate: out-of-fold predictions to cross-fitted fold scores, and to what finds the nuclei of the test set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.experiments.evaluation import evaluate, format_fold_table
from pipeline.experiments.members import describe_members, format_members
from pipeline.experiments.membranes import format_membranes, score_membranes
from pipeline.experiments.unseen import read_unseen, settings_key
from pipeline.files import write_json
from pipeline.folds.blend import Members, OutOfFold, equal_weights
from pipeline.folds.cross_validation import cross_validate_blend, describe_choices
from pipeline.folds.finder import CandidateFinder
from pipeline.folds.predictions import Predictions
from pipeline.folds.table import open_folded
from pipeline.folds.tree_store import write_trees
from pipeline.folds.weighing import choose_weights
from pipeline.nuclei.metric import Matches, count_matches
from pipeline.nuclei.signals import Signals, tabulate_signals
from pipeline.nuclei.submission import write_submission
from pipeline.params import Params
from pipeline.tables import write_csv_table


def main(
    prepared: Path,
    folds: Path,
    oof: Path,
    unseen: Path,
    scores: Path,
    summary: Path,
    decoding: Path,
    candidates: Path,
    trees: Path,
    nuclei: Path,
    signals: Path,
    params: Params,
) -> None:
    """Score every training image with a decoding and a second-level model that the other folds chose and taught."""
    folded, workers = open_folded(prepared, folds, params.folds.ids), params.housekeeping.workers
    images, split = folded.images, folded.split
    key = settings_key(params.recipe, params.predict, params.decode, params.select)
    ids, names = params.folds.ids, params.member_ids
    # The yardstick's networks are of one member, and learn from no images but those that are scored.
    is_measurable = len(split) == len(folded.everything) and not any(params.members[name] for name in names)
    yardstick = read_unseen(unseen, key if is_measurable else None)
    # Exactly what the parameters name: a file of a fold or member that was dropped may still lie there.
    stored = {name: Predictions(oof / name / f"{fold}.npz" for fold in ids) for name in names}
    members = Members(stored, params.known_px, params.size.object_diameter_px)
    finder = CandidateFinder(params.predict.scales, params.size.object_diameter_px, params.select)
    fold_of = dict(zip(images["image_id"], images["fold"].tolist(), strict=True))
    if params.ensemble.weights == "greedy" and len(names) > 1:
        weights = choose_weights(members, split, fold_of, params.decode, workers)
    else:
        weights = equal_weights(names, ids)
    held_out = cross_validate_blend(members, weights, split, fold_of, params.decode, finder, candidates, workers)
    predictions = OutOfFold(members, weights, fold_of)
    found: list[Matches] = []
    signals_of: list[tuple[str, Signals | None]] = []

    def count() -> Iterator[tuple[str, NDArray[np.int32]]]:
        """Hand label maps on to be written, one at a time, and keep what they score and its signals."""
        for name, label_map, own in held_out.found:
            found.append(count_matches(split.label_map(name), label_map))
            signals_of.append((name, own))
            yield name, label_map

    write_submission(nuclei, count())
    write_csv_table(signals, tabulate_signals(signals_of))
    zooms = {name: predictions.zoom(name) for name in split.image_ids}
    evaluation = evaluate(images, held_out.decoded, found, zooms, params.size, params.evaluate)
    cv = evaluation.summary
    if params.targets.boundary == "membrane":
        cv |= score_membranes(predictions, split, workers)
    table, decoded = evaluation.scores, held_out.decoded
    cv |= describe_members(
        members, weights, table, decoded, split, params.decode, finder, params.evaluate, candidates, workers
    )
    cv |= yardstick
    write_csv_table(scores, evaluation.scores)
    write_trees(trees, held_out.trees)
    write_json(decoding, describe_choices(held_out.choices, held_out.fit, weights))
    write_json(summary, cv)
    with pd.option_context("display.width", 160):
        print(format_fold_table(evaluation.scores, cv))
    if params.targets.boundary == "membrane":
        print(format_membranes(cv))
    if "members" in cv:
        print(format_members(cv))
    if yardstick["unseen"]:
        print(f"unseen acquisitions: {cv['unseen_map']:.3f}, the mean over {len(cv['unseen'])} clusters")
