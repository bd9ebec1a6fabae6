"""evaluate: out-of-fold predictions to cross-fitted fold scores, and to what finds the nuclei of the test set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.experiments.evaluation import evaluate, format_fold_table
from pipeline.experiments.membranes import format_membranes, score_membranes
from pipeline.experiments.unseen import read_unseen, settings_key
from pipeline.files import write_json
from pipeline.folds.cross_validation import cross_validate, describe_decoding
from pipeline.folds.finder import CandidateFinder
from pipeline.folds.predictions import Predictions
from pipeline.folds.table import open_folded
from pipeline.folds.tree_store import write_trees
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
    # The yardstick's networks learn from no images but those that are scored: it says nothing of a run that does.
    yardstick = read_unseen(unseen, key if len(split) == len(folded.everything) else None)
    # Exactly the folds that the parameters name: a file of a fold that was dropped may still lie there.
    predictions = Predictions(oof / f"{fold}.npz" for fold in params.folds.ids)
    finder = CandidateFinder(params.predict.scales, params.size.object_diameter_px, params.select)
    fold_of = dict(zip(images["image_id"], images["fold"].tolist(), strict=True))
    held_out = cross_validate(predictions, split, fold_of, params.decode, finder, candidates, workers)
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
    zooms = {name: predictions[name][1] for name in split.image_ids}
    evaluation = evaluate(images, held_out.decoded, found, zooms, params.size, params.evaluate)
    cv = evaluation.summary
    if params.targets.boundary == "membrane":
        cv |= score_membranes(predictions, split, workers)
    cv |= yardstick
    write_csv_table(scores, evaluation.scores)
    write_trees(trees, held_out.trees)
    write_json(decoding, describe_decoding(held_out.choices, held_out.fit))
    write_json(summary, cv)
    with pd.option_context("display.width", 160):
        print(format_fold_table(evaluation.scores, cv))
    if params.targets.boundary == "membrane":
        print(format_membranes(cv))
    if yardstick["unseen"]:
        print(f"unseen acquisitions: {cv['unseen_map']:.3f}, the mean over {len(cv['unseen'])} clusters")
