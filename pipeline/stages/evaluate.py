"""evaluate: out-of-fold predictions to cross-fitted fold scores and the decoding parameters for the test set."""

from pathlib import Path

import pandas as pd

from pipeline.experiments.evaluation import describe_decoding, format_fold_table, summarize_scores, tabulate_scores
from pipeline.files import write_json, write_text
from pipeline.images.folds import check_folds, read_folds
from pipeline.images.store import Pack, open_packs
from pipeline.images.table import read_table
from pipeline.nuclei.tuning import candidates, count_candidates, cross_fit, score_candidates
from pipeline.params import Params
from pipeline.stages.run import run


def main(prepared: Path, folds: Path, oof: Path, scores: Path, summary: Path, decoding: Path, params: Params) -> None:
    """Score every training image with decoding parameters that were chosen on the other folds."""
    images = read_folds(folds).merge(read_table(prepared)[["image_id", "image_type"]], on="image_id", how="left")
    check_folds(read_folds(folds), read_table(prepared)["image_id"].tolist(), None, params.folds.ids)
    # Exactly the folds that the parameters name: a file of a fold that was dropped may still lie there.
    predictions = open_packs(oof / f"{fold}.npz" for fold in params.folds.ids)
    choices = candidates(params.decode)
    image_ids = images["image_id"].tolist()
    counts = count_candidates(predictions, Pack(prepared / "images.npz"), image_ids, choices, params.decode.workers)
    fit = cross_fit(score_candidates(counts), images["fold"].to_numpy())
    fitted = [image[fit.on_others[fold]] for image, fold in zip(counts, images["fold"], strict=True)]
    table = tabulate_scores(images, fitted)
    cv = summarize_scores(table, fitted, params.evaluate)
    write_text(scores, table.round(6).to_csv(index=False, lineterminator="\n"))
    write_json(decoding, describe_decoding(choices, fit))
    write_json(summary, cv)
    with pd.option_context("display.width", 160):
        print(format_fold_table(table, cv))


if __name__ == "__main__":
    run(main)
