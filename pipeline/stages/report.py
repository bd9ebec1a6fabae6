"""report: the run as one HTML file that works offline."""

from pathlib import Path

import pandas as pd

from pipeline.experiments.expectation import read_expected
from pipeline.experiments.report import choose_examples, write_report
from pipeline.experiments.runs import read_scores
from pipeline.files import read_json, write_text
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.submission import read_label_maps
from pipeline.params import Params


def main(
    prepared: Path,
    nuclei: Path,
    scores: Path,
    summary: Path,
    histories: Path,
    card: Path,
    expected: Path,
    submission: Path,
    curves: Path,
    out: Path,
    params: Params,
) -> None:
    """Show fold scores, curves, and the best, median and worst images of each type with their outlines."""
    table, split = read_scores(scores), PreparedSplit.open(prepared)
    names = [example.image_id for example in choose_examples(table)]
    found = read_label_maps(nuclei, {name: split.shape_of(name) for name in names})
    items = [(name, fold) for name in params.member_ids for fold in params.folds.ids]
    # Of one member its folds go by their numbers.
    titles = [f"{name}-{fold}" if len(params.member_ids) > 1 else str(fold) for name, fold in items]
    tables = [pd.read_csv(histories / name / f"{fold}.csv") for name, fold in items]
    curves_of = dict(zip(titles, tables, strict=True))
    together = pd.concat([history.assign(fold=title) for title, history in curves_of.items()])
    write_text(curves, together.to_csv(index=False, lineterminator="\n"))
    pictures = ((name, split.image(name), split.label_map(name), label_map) for name, label_map in found)
    foretold = read_expected(expected)
    write_report(out, table, read_json(summary), read_json(card), foretold, curves_of, pictures, str(submission))
    print(f"report: {out}")
