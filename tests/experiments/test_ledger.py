"""Kept runs: whole folders, one row each, and cards that hold what lies apart for the current run."""

import json
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.experiments.compare import compare_runs
from pipeline.experiments.ledger import (
    COLUMNS,
    describe_run,
    keep_run,
    kept_file,
    read_ledger,
    read_local_card,
    set_leaderboard_score,
)
from pipeline.experiments.runs import load_run
from pipeline.files import read_json, sha256_of
from pipeline.nuclei.submission import read_submission

ROOT = Path(__file__).resolve().parents[2]

CARD = {
    "cv_map": 0.5123456,
    "cv_std": 0.02,
    "expected_lb": 0.39,
    "expected_lb_low": 0.35,
    "expected_lb_high": 0.43,
    "lb_map": None,
    "seed": 2018,
    "threads": 2,
    "params": {"train": {"epochs": 3}},
    "digests": {},
    "versions": {},
}
LOCAL = {
    "wall_s": 512.3,
    "device": "cpu, two cores",
    "revision": "abc",
    "python": "3.11.7",
    "epoch_seconds": {"0": [1.5, 3.0]},
}
UNKNOWN = {"wall_s": None, "device": None, "revision": None, "python": None, "epoch_seconds": {}}


def write_local(submissions, **changes):
    local = {"run": sha256_of(submissions / "run.json"), **LOCAL, **changes}
    (submissions / "run.local.json").write_text(json.dumps(local))


@pytest.fixture
def run(tmp_path):
    submissions, folds = tmp_path / "submissions", tmp_path / "folds"
    submissions.mkdir()
    folds.mkdir()
    (submissions / "submission.csv").write_text("ImageId,EncodedPixels\na,1 2\n")
    (submissions / "expected.csv").write_text("image_id,expected,low,high\na,0.4,0.2,0.6\n")
    (submissions / "run.json").write_text(json.dumps(CARD))
    write_local(submissions)
    (folds / "cv.json").write_text(json.dumps({"cv_map": 0.5123456}))
    (folds / "scores.csv").write_text("image_id,ap\na,1\n")
    (folds / "folds.csv").write_text("image_id,fold\na,0\n")
    return submissions, folds


def test_keep_copies_the_run_and_adds_a_row(run):
    folder = keep_run("first", *run)
    assert folder == run[0] / "first"
    names = {"submission.csv", "expected.csv", "run.json", "cv.json", "scores.csv", "folds.csv"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names - {"run.json"}:
        source = run[0] / name if (run[0] / name).exists() else run[1] / name
        assert (folder / name).read_bytes() == source.read_bytes()
    assert json.loads((folder / "run.json").read_text()) == CARD | LOCAL
    keep_run("second", *run)
    table = pd.read_csv(run[0] / "ledger.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["name"].tolist() == ["first", "second"]
    assert table["cv_map"].tolist() == [0.5123456] * 2
    assert table["device"].tolist() == ["cpu, two cores"] * 2
    assert table["lb_map"].isna().all()
    assert {path.name for path in run[0].iterdir()} == {
        *("submission.csv", "expected.csv", "run.json", "run.local.json", "ledger.csv", "first", "second"),
    }


def test_the_leaderboard_score_reaches_the_row_and_the_card_and_nothing_else(run):
    keep_run("first", *run)
    keep_run("second", *run)
    before = read_ledger(run[0])
    set_leaderboard_score("first", 0.401, run[0])
    after = read_ledger(run[0])
    assert after == [{**before[0], "lb_map": "0.401"}, before[1]]
    assert json.loads(kept_file("first", run[0], "run.json").read_text()) == {**CARD, **LOCAL, "lb_map": 0.401}
    assert json.loads((run[0] / "run.json").read_text())["lb_map"] is None


@pytest.mark.parametrize("name", ["", ".", "..", "../out", "a/b", "a\\b", ".hidden", "-f", "a b", "a\n", "é", "/abs"])
def test_names_that_are_none(run, name):
    for call in (lambda: keep_run(name, *run), lambda: set_leaderboard_score(name, 0.5, run[0])):
        with pytest.raises(InputError, match="not a run's name"):
            call()
    assert sorted(path.name for path in run[0].iterdir()) == [
        "expected.csv",
        "run.json",
        "run.local.json",
        "submission.csv",
    ]


@pytest.mark.parametrize("name", ["first", "ledger.csv", "submission.csv"])
def test_a_taken_name_is_refused_and_left_alone(run, name):
    keep_run("first", *run)
    before = {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="there already"):
        keep_run(name, *run)
    assert {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("missing", ["submission.csv", "run.json", "cv.json", "scores.csv", "folds.csv"])
def test_an_unfinished_run_is_not_kept(run, missing):
    for folder in run:
        (folder / missing).unlink(missing_ok=True)
    with pytest.raises(InputError, match=rf"{missing}: not there.*dvc repro"):
        keep_run("first", *run)
    assert not (run[0] / "first").exists()
    assert not (run[0] / "ledger.csv").exists()


def test_a_run_card_of_another_run_is_not_kept(run):
    (run[1] / "cv.json").write_text(json.dumps({"cv_map": 0.6}))
    with pytest.raises(InputError, match="different runs"):
        keep_run("first", *run)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "cannot be read as JSON"), ("[]", "no JSON object"), ('{"cv_map": 0.5123456}', "lacks cv_std")],
)
def test_a_broken_run_card(run, text, words):
    (run[0] / "run.json").write_text(text)
    with pytest.raises(InputError, match=words):
        keep_run("first", *run)
    assert not (run[0] / "first").exists()


@pytest.mark.parametrize("fault", ["missing", "damaged", "of another run", "no object"])
def test_what_is_not_known_of_this_run_stays_null(run, fault):
    path = run[0] / "run.local.json"
    if fault == "missing":
        path.unlink()
    elif fault == "of another run":
        write_local(run[0], run="0" * 64)
    else:
        path.write_text("{" if fault == "damaged" else "[1]")
    assert read_local_card(run[0]) == UNKNOWN
    assert read_json(keep_run("first", *run) / "run.json") == CARD | UNKNOWN
    assert [row["device"] for row in read_ledger(run[0])] == [""]


def test_a_card_that_says_all_itself_is_believed(run):
    """As those of runs that were finished before the local card was taken out of it."""
    (run[0] / "run.json").write_text(json.dumps(CARD | {"wall_s": 7.0, "device": "cuda", "revision": "old"}))
    card = read_json(keep_run("first", *run) / "run.json")
    assert (card["wall_s"], card["device"], card["revision"]) == (7.0, "cuda", "old")


def test_an_upload_is_described_by_its_run_and_its_file():
    described = describe_run("first", CARD, "0123456789abcdef")
    assert described == "first: CV 0.5123 +- 0.0200, expected 0.390 (0123456789ab)"
    assert describe_run("first", CARD | {"expected_lb": None}, "0" * 64) == "first: CV 0.5123 +- 0.0200 (000000000000)"


def find_kept():
    """The runs that are kept in this repository, of all ages."""
    return sorted(path.parent.name for path in (ROOT / "submissions").glob("*/run.json"))


def test_there_are_kept_runs():
    assert {"reference", "lite0-3folds"} <= set(find_kept())


@pytest.mark.parametrize("name", find_kept())
def test_kept_runs_of_all_ages_stay_readable(name, params):
    submissions = ROOT / "submissions"
    card = read_json(kept_file(name, submissions, "run.json"))
    (row,) = (row for row in read_ledger(submissions) if row["name"] == name)
    assert row == {"name": name} | {key: "" if card[key] is None else str(card[key]) for key in COLUMNS[1:]}
    assert describe_run(name, card, "0" * 64).startswith(f"{name}: CV ")
    scores = load_run(name, ROOT, PurePosixPath("folds/scores.csv"), PurePosixPath("submissions")).scores
    assert scores["ap"].mean() == pytest.approx(card["cv_map"], abs=1e-6)
    evaluate = params.evaluate.model_copy(update={"bootstrap": 10})
    assert "no difference" in compare_runs({"a": scores, "b": scores}, evaluate).differences[0].verdict
    read_submission(kept_file(name, submissions, "submission.csv"))


@pytest.mark.parametrize("name", find_kept())
def test_a_kept_run_can_be_scored_and_kept_anew(name, tmp_path):
    """Its files laid out as a current run's: the same card and row come of it, and a leaderboard's score goes in."""
    kept, submissions, folds = ROOT / "submissions" / name, tmp_path / "submissions", tmp_path / "folds"
    for target, files in (
        (submissions, ("submission.csv", "run.json")),
        (folds, ("cv.json", "scores.csv", "folds.csv")),
    ):
        target.mkdir()
        for file in files:
            (target / file).write_bytes((kept / file).read_bytes())
    (submissions / "expected.csv").touch()  # some runs are older than this file
    card = read_json(keep_run(name, submissions, folds) / "run.json")
    old = read_json(kept / "run.json")
    assert {key: card[key] for key in old} == old
    set_leaderboard_score(name, 0.25, submissions)
    (row,) = read_ledger(submissions)
    (listed,) = (row for row in read_ledger(ROOT / "submissions") if row["name"] == name)
    assert row == {**listed, "lb_map": "0.25"}


def test_a_row_whose_folder_is_gone_gives_way(run):
    for path in sorted(keep_run("first", *run).iterdir()):
        path.unlink()
    (run[0] / "first").rmdir()
    keep_run("second", *run)
    keep_run("first", *run)
    assert [row["name"] for row in read_ledger(run[0])] == ["second", "first"]


def test_a_foreign_ledger_is_not_overwritten(run):
    (run[0] / "ledger.csv").write_text("name,score\nx,1\n")
    with pytest.raises(InputError, match="not a ledger"):
        keep_run("first", *run)
    assert (run[0] / "ledger.csv").read_text() == "name,score\nx,1\n"
    assert not (run[0] / "first").exists()


def test_scores_out_of_range_or_of_no_run(run):
    keep_run("first", *run)
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(InputError, match="in \\[0, 1\\]"):
            set_leaderboard_score("first", score, run[0])
    with pytest.raises(InputError, match="keep the run first"):
        set_leaderboard_score("other", 0.5, run[0])
