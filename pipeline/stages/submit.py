"""submit: test predictions to a checked submission, what it is expected to score, and its run card."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.experiments.expectation import expect_leaderboard, read_known, read_signals
from pipeline.experiments.run_card import make_local_card, make_run_card
from pipeline.experiments.runs import read_scores
from pipeline.files import read_json, write_json
from pipeline.folds.blend import Members, read_weights
from pipeline.folds.finder import find_nuclei, load_finder
from pipeline.folds.predictions import Predictions
from pipeline.images.splits import PreparedSplit
from pipeline.images.table import read_table
from pipeline.launch import read_journal
from pipeline.nuclei.signals import Signals, tabulate_signals
from pipeline.nuclei.solution import read_solution_of, score_submission
from pipeline.nuclei.submission import read_submission, write_submission
from pipeline.params import DataParams, Params
from pipeline.progress import track
from pipeline.tables import write_csv_table
from pipeline.unet.weights import read_metadata


def main(
    archives: Path,
    trained: Path,
    prepared: Path,
    probabilities: Path,
    decoding: Path,
    trees: Path,
    scores: Path,
    signals: Path,
    known: Path,
    summary: Path,
    weights: Path,
    submission: Path,
    expected: Path,
    card: Path,
    local: Path,
    journal: Path,
    params: Params,
) -> None:
    """Decode the test predictions, write and check the submission, and describe the run."""
    split, members, folds = PreparedSplit.open(prepared), params.member_ids, params.folds.ids
    path = None if params.data.solution is None else archives / params.data.solution
    solution = read_solution_of(path, split.image_ids) if path else None
    finder = load_finder(decoding, trees, params.predict.scales, params.size, params.select)
    picks, shares = read_weights(decoding, members).on_all, params.data.test_shares
    stored = {name: Predictions(probabilities / name / f"{share}.npz" for share in shares) for name in picks}
    predictions = Members(stored, params.known_px, params.size.object_diameter_px).blend(picks)
    found = find_nuclei(predictions, split.image_ids, finder, params.housekeeping.workers)
    signals_of: list[tuple[str, Signals | None]] = []

    def keep_signals() -> Iterator[tuple[str, NDArray[np.int32]]]:
        """Hand label maps on to be written, one at a time, and keep what tells their score."""
        for name, label_map, own in track(found, "submit", len(split)):
            signals_of.append((name, own))
            yield name, label_map

    write_submission(submission, keep_signals())
    written = read_submission(submission)
    written.check(split.shapes())
    lb_map = score_submission(written, solution).mean if solution else None

    weight_files = [weights / name / f"{fold}.safetensors" for name in members for fold in folds]
    metadata_of = {name: read_metadata(weights / name / f"{folds[0]}.safetensors") for name in members}
    metadata = metadata_of[members[0]]
    learnt = read_table(trained)
    held_out = read_scores(scores).merge(learnt[["image_id", "height", "width"]], on="image_id", how="left")
    expectation = expect_leaderboard(
        split.table.merge(tabulate_signals(signals_of), on="image_id", how="left", validate="one_to_one"),
        held_out.merge(read_signals(signals), on="image_id", how="left", validate="one_to_one"),
        read_known(known),
        params.evaluate,
    )
    write_csv_table(expected, expectation.images)
    files = [*list_archives(archives, params.data), *weight_files, trees]
    encoders = {
        name: {key: own[key] for key in sorted(own) if key.startswith("encoder_")} for name, own in metadata_of.items()
    }
    precision = metadata.get("precision")
    write_json(card, make_run_card(params, read_json(summary), expectation, lb_map, files, encoders, precision, learnt))
    noted = read_journal(journal, members, folds, shares)
    write_json(local, make_local_card(card, metadata.get("device"), noted.wall_s, noted.epoch_seconds))
    score = "" if lb_map is None else f", scores {lb_map:.4f}"
    print(f"{submission}: {written.count_nuclei()} nuclei in {len(split)} images, valid{score}")


def list_archives(archives: Path, data: DataParams) -> list[Path]:
    """Return the files and folders of `data`, in the folder `archives`, that a run is made from."""
    sources = [*data.sources.values(), *([data.test] if data.test else [])]
    names = [name for source in sources for name in (source.archive, source.labels)] + [data.solution]
    return [archives / name for name in names if name is not None]
