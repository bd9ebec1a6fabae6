"""Files by their content: from DVC's cache, from its remote, or one line that says what is missing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.contents import fetch_contents, list_contents, push_contents
from pipeline.errors import InputError

STAGES = """
stages:
  train:
    matrix: {member: [main], fold: [0, 1]}
    cmd: mkdir -p folds/weights/main && echo weights ${item.fold} > folds/weights/main/${item.fold}.safetensors
    outs: ["folds/weights/main/${item.fold}.safetensors"]
  evaluate:
    cmd: echo trees > folds/trees.npz && echo scores > folds/scores.csv
    outs: [folds/trees.npz, folds/scores.csv: {cache: false}]
"""
NAMES = ["train@main-0", "train@main-1", "evaluate"]
TOPS = ("folds/weights", "folds/trees.npz")


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words, "-q"], check=True)


@pytest.fixture
def contents(tmp_path, monkeypatch):
    """Change into a checkout whose stages have run, and return what is known of its files."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init")
    Path("dvc.yaml").write_text(STAGES)
    Path("folds").mkdir()
    dvc("repro")
    return list_contents(NAMES, TOPS)


def test_files_of_the_stages_below_the_paths_are_listed(contents):
    assert sorted(contents) == [
        "folds/trees.npz",
        "folds/weights/main/0.safetensors",
        "folds/weights/main/1.safetensors",
    ]
    assert list_contents(["train@main-1", "size@main-1"], TOPS).keys() == {"folds/weights/main/1.safetensors"}
    Path("dvc.lock").unlink()
    assert list_contents(NAMES, TOPS) == {}


def test_what_is_gone_or_changed_comes_back_from_the_cache_and_the_rest_is_left(contents):
    assert push_contents(contents) == (None, [])
    assert fetch_contents(contents, Path()) == []
    shutil.rmtree("folds/weights")
    Path("folds/trees.npz").write_text("other")
    assert {path.name for path in fetch_contents(contents, Path())} == {"0.safetensors", "1.safetensors", "trees.npz"}
    assert Path("folds/weights/main/1.safetensors").read_text() == "weights 1\n"
    assert Path("folds/trees.npz").read_text() == "trees\n"
    fetch_contents(contents, Path("elsewhere"))
    assert Path("elsewhere/folds/weights/main/0.safetensors").read_text() == "weights 0\n"


def test_without_cache_and_remote_it_is_said_what_is_missing(contents):
    shutil.rmtree(".dvc/cache")
    assert push_contents(contents)[1] == [*contents]
    with pytest.raises(InputError, match=r"DVC's cache lacks it, as 3 of 3 files, and no remote is configured; `dvc"):
        fetch_contents(contents, Path("elsewhere"))
    assert not Path("elsewhere").exists()


def test_a_remote_has_them_too(contents, tmp_path):
    dvc("remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    assert push_contents(contents) == ("shelf", [])
    shutil.rmtree(".dvc/cache")
    assert len(fetch_contents(contents, Path("elsewhere"))) == 3
    assert Path("elsewhere/folds/trees.npz").read_text() == "trees\n"
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(tmp_path / "shelf")
    with pytest.raises(InputError, match=r"^remote shelf does not give folds/"):
        fetch_contents(contents, Path("again"))


def test_a_file_of_the_cache_that_is_damaged_is_not_handed_on(contents):
    (damaged,) = [path for path in Path(".dvc/cache").rglob("*") if path.is_file() and path.read_text() == "trees\n"]
    damaged.chmod(0o644)
    damaged.write_text("cut")
    with pytest.raises(InputError, match=r"folds/trees\.npz: DVC's cache has it damaged"):
        fetch_contents(contents, Path("elsewhere"))
