"""evaluate: out-of-fold predictions to cross-fitted fold scores, and to what finds the nuclei of the test set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.experiments.evaluation import describe_decoding, evaluate, format_fold_table
from pipeline.experiments.membranes import format_membranes, score_membranes
from pipeline.files import write_json, write_text
from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.finder import CandidateFinder
from pipeline.folds.predictions import Predictions
from pipeline.folds.second_level import find_held_out, rate_images
from pipeline.folds.table import open_folded
from pipeline.launch import run
from pipeline.nuclei.metric import Matches, count_matches
from pipeline.nuclei.submission import write_submission
from pipeline.nuclei.tuning import count_decodings, cross_fit, decoding_grid, score_decodings
from pipeline.params import Params
from pipeline.progress import track


def main(
    prepared: Path,
    folds: Path,
    oof: Path,
    scores: Path,
    summary: Path,
    decoding: Path,
    candidates: Path,
    nuclei: Path,
    params: Params,
) -> None:
    """Score every training image with a decoding and a second-level model that the other folds chose and taught."""
    folded, workers = open_folded(prepared, folds, params.folds.ids), params.housekeeping.workers
    images, split = folded.images, folded.split
    image_ids = images["image_id"].tolist()
    # Exactly the folds that the parameters name: a file of a fold that was dropped may still lie there.
    predictions = Predictions(oof / f"{fold}.npz" for fold in params.folds.ids)

    choices = decoding_grid(params.decode)
    items = ((name, predictions[name][0], split.label_map(name)) for name in image_ids)
    counts = count_decodings(items, choices, workers, len(image_ids))
    fit = cross_fit(score_decodings(counts), images["fold"].to_numpy())
    decoded = [image[fit.on_others[fold]] for image, fold in zip(counts, images["fold"], strict=True)]

    finder = CandidateFinder(params.predict.scales, params.size.object_diameter_px, params.select)
    write_candidates(candidates, rate_images(predictions, split, finder, workers))
    by_fold = {fold: choices[index] for fold, index in fit.on_others.items()}
    fold_of = dict(zip(image_ids, images["fold"].tolist(), strict=True))
    chosen = find_held_out(CandidateStore(candidates), predictions, fold_of, by_fold, params.select)
    found: list[Matches] = []

    def count() -> Iterator[tuple[str, NDArray[np.int32]]]:
        """Hand label maps on to be written, one at a time, and keep what they score."""
        for name, label_map in track(chosen, "choose nuclei", len(image_ids)):
            found.append(count_matches(split.label_map(name), label_map))
            yield name, label_map

    write_submission(nuclei, count())
    zooms = {name: predictions[name][1] for name in image_ids}
    evaluation = evaluate(images, decoded, found, zooms, params.size, params.evaluate)
    cv = evaluation.summary
    if params.targets.boundary == "membrane":
        cv |= score_membranes(predictions, split, workers)
    write_text(scores, evaluation.scores.round(6).to_csv(index=False, lineterminator="\n"))
    write_json(decoding, describe_decoding(choices, fit))
    write_json(summary, cv)
    with pd.option_context("display.width", 160):
        print(format_fold_table(evaluation.scores, cv))
    if params.targets.boundary == "membrane":
        print(format_membranes(cv))


if __name__ == "__main__":
    run(main)
