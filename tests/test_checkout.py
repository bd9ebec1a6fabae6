"""However the files come to a machine, they are the same and run: cloned with Windows' line ends, or without git.

And an experiment of DVC, which runs in a checkout of its own, gets the data that git ignores.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.provenance import ROOT
from tests.faults.workspace import make_archives, make_workspace

BIN = Path(sys.executable).parent


def run(folder: Path, *command: str | Path) -> str:
    """Return what a command prints that is run in `folder`, with this Python's programs first on PATH."""
    names = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    variables |= {**names, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    variables["DVC_SITE_CACHE_DIR"] = str(folder / ".dvc/tmp/site")
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def names() -> list[str]:
    """Return the files that git tracks or would, relative to the repository's root."""
    if not (ROOT / ".git").exists():
        pytest.skip("the files are not told from others without git")
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({name for name in listed if (ROOT / name).is_file()})


def copy_files(names: list[str], folder: Path) -> Path:
    """Copy the files `names` of the repository to `folder`, and return it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def test_a_clone_with_line_ends_of_windows_has_git_s_very_bytes(names: list[str], tmp_path: Path) -> None:
    origin, clone = copy_files(names, tmp_path / "origin"), tmp_path / "clone"
    run(origin, "git", "init", "-q")
    run(origin, "git", "add", ".")
    run(origin, "git", "commit", "-qm", "all")
    run(tmp_path, "git", "clone", "-q", "-c", "core.autocrlf=true", origin, clone)
    assert [name for name in names if (clone / name).read_bytes() != (ROOT / name).read_bytes()] == []
    assert run(clone, "git", "status", "--porcelain") == ""


def test_a_download_without_git_runs_also_in_a_repository_of_another(names: list[str], tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    run(tmp_path, "git", "init", "-q")
    folder = copy_files(names, tmp_path / "download")
    tell = ("make", "--old-file=.venv/.ready", "tell-dvc-of-git")  # as if the environment were set up
    assert "git init && git add . && git commit" in run(folder, *tell)
    assert "Running stage 'prepare'" in run(folder, "dvc", "repro", "prepare")
    assert "current less reference" in run(folder, "python", "-m", "pipeline", "compare", "reference")
    # What is a repository, or becomes one, is used as one.
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "start")
    assert run(folder, *tell) == ""
    assert "dvc exp" not in run(folder, "dvc", "exp", "list")
    assert "up to date" in run(folder, "dvc", "repro", "prepare")


def test_queued_experiments_get_data_that_git_ignores(tmp_path: Path) -> None:
    """As pipeline/images/README.md says."""
    folder = make_workspace(tmp_path)
    make_archives(folder / "data" / "dsb2018")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "start")
    assert "dsb2018" not in run(folder, "git", "ls-files", "data")
    values = ("-S", "data=full", "-S", "data.min_fragment_px=5,6,7")
    run(folder, "dvc", "exp", "run", "--queue", "-C", "data/dsb2018", *values, "prepare")
    run(folder, "dvc", "exp", "run", "--run-all")
    shown = run(folder, "dvc", "exp", "show", "--csv")
    ended = [row["data.min_fragment_px"] for row in csv.DictReader(shown.splitlines()) if row["State"] == "Success"]
    assert sorted(ended) == ["5", "6", "7"]


def test_windows_is_sent_to_wsl() -> None:
    done = subprocess.run(["make", "OS=Windows_NT", "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "run it in WSL, https://learn.microsoft.com/windows/wsl" in done.stderr
