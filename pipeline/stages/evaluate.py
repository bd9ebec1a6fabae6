"""evaluate: out-of-fold predictions to cross-fitted fold scores, and to what finds the nuclei of the test set."""

from pathlib import Path

import pandas as pd

from pipeline.experiments.evaluation import (
    describe_decoding,
    describe_sizes,
    format_fold_table,
    summarize_scores,
    tabulate_scores,
)
from pipeline.experiments.instances import read_prediction
from pipeline.experiments.membranes import format_membranes, score_membranes
from pipeline.experiments.second_level import find_held_out, store_candidates
from pipeline.files import write_json, write_text
from pipeline.images.folds import check_folds, read_folds
from pipeline.images.store import Pack, open_packs
from pipeline.images.table import read_table
from pipeline.nuclei.metric import count_matches
from pipeline.nuclei.submission import read_label_maps, write_submission
from pipeline.nuclei.tuning import candidates as list_candidates
from pipeline.nuclei.tuning import count_candidates, cross_fit, score_candidates
from pipeline.params import Params
from pipeline.progress import track
from pipeline.stages.run import run


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
    table, fold_table = read_table(prepared), read_folds(folds)
    check_folds(fold_table, table["image_id"].tolist(), None, params.folds.ids)
    images = fold_table.merge(table[["image_id", "image_type", "median_area_px"]], on="image_id", how="left")
    # Exactly the folds that the parameters name: a file of a fold that was dropped may still lie there.
    predictions, truths = open_packs(oof / f"{fold}.npz" for fold in params.folds.ids), Pack(prepared / "images.npz")
    choices, image_ids = list_candidates(params.decode), images["image_id"].tolist()
    counts = count_candidates(predictions, truths, image_ids, choices, params.decode.workers)
    fit = cross_fit(score_candidates(counts), images["fold"].to_numpy())
    decoded = [image[fit.on_others[fold]] for image, fold in zip(counts, images["fold"], strict=True)]

    store_candidates(candidates, predictions, truths, image_ids, params)
    by_fold = {fold: choices[index] for fold, index in fit.on_others.items()}
    fold_of = dict(zip(image_ids, images["fold"].tolist(), strict=True))
    found = find_held_out(Pack(candidates), predictions, fold_of, by_fold, params)
    write_submission(nuclei, track(found, "choose nuclei", len(image_ids)))
    shapes = {name: truths[f"{name}.label_map"].shape for name in image_ids}
    fitted = [count_matches(truths[f"{name}.label_map"], seen) for name, seen in read_label_maps(nuclei, shapes)]
    scored = tabulate_scores(images, fitted)
    cv = summarize_scores(scored, fitted, params.evaluate)
    cv["one_decoding_map"] = float(tabulate_scores(images, decoded)["ap"].mean())
    cv |= describe_sizes(images, {name: read_prediction(predictions, name)[1] for name in image_ids}, params)
    if params.targets.boundary == "membrane":
        cv |= score_membranes(predictions, truths, image_ids, params)
    write_text(scores, scored.round(6).to_csv(index=False, lineterminator="\n"))
    write_json(decoding, describe_decoding(choices, fit))
    write_json(summary, cv)
    with pd.option_context("display.width", 160):
        print(format_fold_table(scored, cv))
    if params.targets.boundary == "membrane":
        print(format_membranes(cv))


if __name__ == "__main__":
    run(main)
