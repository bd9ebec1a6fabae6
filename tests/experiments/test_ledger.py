import json

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.experiments.ledger import COLUMNS, keep_run, kept_file, read_ledger, set_leaderboard_score

CARD = {
    "cv_map": 0.5123456,
    "cv_std": 0.02,
    "expected_lb": 0.39,
    "expected_lb_low": 0.35,
    "expected_lb_high": 0.43,
    "lb_map": None,
    "wall_s": 512.3,
    "seed": 2018,
    "threads": 2,
    "device": "cpu, two cores",
    "params": {"train": {"epochs": 3}},
    "revision": "abc",
    "digests": {},
    "versions": {},
}


@pytest.fixture
def run(tmp_path):
    submissions, folds = tmp_path / "submissions", tmp_path / "folds"
    submissions.mkdir()
    folds.mkdir()
    (submissions / "submission.csv").write_text("ImageId,EncodedPixels\na,1 2\n")
    (submissions / "run.json").write_text(json.dumps(CARD))
    (folds / "cv.json").write_text(json.dumps({"cv_map": 0.5123456}))
    (folds / "scores.csv").write_text("image_id,ap\na,1\n")
    (folds / "folds.csv").write_text("image_id,fold\na,0\n")
    return submissions, folds


def test_keep_copies_the_run_and_adds_a_row(run):
    folder = keep_run("first", *run)
    assert folder == run[0] / "first"
    names = {"submission.csv", "run.json", "cv.json", "scores.csv", "folds.csv"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        source = run[0] / name if (run[0] / name).exists() else run[1] / name
        assert (folder / name).read_bytes() == source.read_bytes()
    keep_run("second", *run)
    table = pd.read_csv(run[0] / "ledger.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["name"].tolist() == ["first", "second"]
    assert table["cv_map"].tolist() == [0.5123456] * 2
    assert table["device"].tolist() == ["cpu, two cores"] * 2
    assert table["lb_map"].isna().all()
    assert {path.name for path in run[0].iterdir()} == {"submission.csv", "run.json", "ledger.csv", "first", "second"}


def test_the_leaderboard_score_reaches_the_row_and_the_card_and_nothing_else(run):
    keep_run("first", *run)
    keep_run("second", *run)
    before = read_ledger(run[0])
    set_leaderboard_score("first", 0.401, run[0])
    after = read_ledger(run[0])
    assert after == [{**before[0], "lb_map": "0.401"}, before[1]]
    assert json.loads(kept_file("first", run[0], "run.json").read_text()) == {**CARD, "lb_map": 0.401}
    assert json.loads((run[0] / "run.json").read_text())["lb_map"] is None


@pytest.mark.parametrize("name", ["", ".", "..", "../out", "a/b", "a\\b", ".hidden", "-f", "a b", "a\n", "é", "/abs"])
def test_names_that_are_none(run, name):
    for call in (lambda: keep_run(name, *run), lambda: set_leaderboard_score(name, 0.5, run[0])):
        with pytest.raises(InputError, match="not a run's name"):
            call()
    assert sorted(path.name for path in run[0].iterdir()) == ["run.json", "submission.csv"]


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
    ("text", "words"), [("{", "not JSON"), ("[]", "not a JSON object"), ('{"cv_map": 0.5123456}', "lacks cv_std")]
)
def test_a_broken_run_card(run, text, words):
    (run[0] / "run.json").write_text(text)
    with pytest.raises(InputError, match=words):
        keep_run("first", *run)
    assert not (run[0] / "first").exists()


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
