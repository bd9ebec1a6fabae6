"""Find a run by what people call it, and read its fold scores.

In: a name: none (the working tree), a kept run, a CSV or a folder, a git revision, a DVC experiment. Out: its score
table: image_id, group, fold, image_type, ap, and ap50 .. ap95 where they are there; and the cv.json beside it.
"""

import json
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from pipeline.errors import InputError, shorten
from pipeline.files import read_json
from pipeline.nuclei.metric import THRESHOLDS_PERCENT
from pipeline.tables import read_csv_table

COLUMNS = {"image_id": str, "group": str, "fold": int, "image_type": str, "ap": float}
_AT_THRESHOLDS = {f"ap{percent}": float for percent in THRESHOLDS_PERCENT}
_CURE = "`dvc repro evaluate` writes such a table"
_SUMMARY = "cv.json"
_SCORES = "scores.csv"  # beside it

# How DVC names an experiment: refs/exps/<2 digits of the baseline>/<the other 38>/<name>. Beside these it keeps
# refs of its own (stash, exec, celery, apply), which are no experiments.
_EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(?P<name>[^/]+)")


class Run(NamedTuple):
    """A run's results.

    Attributes:
        scores: the checked score table, sorted by image_id.
        summary: what its cv.json holds; empty where none lies beside the score table.
    """

    scores: pd.DataFrame
    summary: dict[str, Any]


def load_run(name: str | None, root: Path, scores: PurePosixPath, submissions: PurePosixPath) -> Run:
    """Return the results of the run called `name`.

    Looked for in this order: no name, the working tree; a kept run; a CSV or a folder that holds one; a git revision,
    branch or tag; a DVC experiment. To mean a branch that a kept run hides, write `refs/heads/<branch>`.

    Args:
        name: what the run is called; None or empty for the working tree.
        root: the repository's root.
        scores: the score table in every run's tree, relative to `root`.
        submissions: the folder of the kept runs, relative to `root`.

    Raises:
        InputError: nothing is called so, it has no score table, or that or its cv.json is faulty.
    """
    if not name:
        return _read_run(root / scores)
    if "\0" not in name:
        kept = root / submissions / name / scores.name
        if PurePosixPath(name).name == name and kept.is_file():
            return _read_run(kept)
        for path in (Path(name), Path(name) / scores.name):
            if path.is_file():
                return _read_run(path)
        commit = find_commit(root, name)
        if commit is not None:
            return _show_run(root, commit, name, scores)
    is_shallow = _run_git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
    raise InputError(
        f"{name!r}: no kept run, CSV, git revision or DVC experiment is called so; "
        "`git branch --all`, `dvc exp list --all-commits` and the ledger show the names there are"
        + (", and `git fetch --unshallow` gets the older revisions, which this clone lacks" if is_shallow else "")
    )


def find_commit(root: Path, name: str) -> str | None:
    """Return the hash of the commit that a git revision or a DVC experiment names, or None.

    Raises:
        InputError: several experiments have that name, or git finds no repository here or refuses it.
    """
    found = _run_git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found.returncode == 0:
        return found.stdout.strip()
    if found.stderr:  # of a name that it does not know it says nothing
        raise InputError(
            f"{name!r}: no kept run or CSV is called so, and git cannot look for a revision: "
            f"{shorten(found.stderr, 400)}; name a kept run, as `reference`, or a CSV of scores"
        )
    listed = _run_git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
    commits = set()
    for line in listed.stdout.splitlines():
        commit, _, ref = line.partition(" ")
        match = _EXPERIMENT.fullmatch(ref)
        if match and match["name"] == name:
            commits.add(commit)
    if len(commits) > 1:
        raise InputError(f"{name!r}: {len(commits)} experiments have this name; give one's hash: {sorted(commits)}")
    return commits.pop() if commits else None


def _read_run(path: Path) -> Run:
    summary = path.with_name(_SUMMARY)
    # A table of another name may be of another run than what lies beside it.
    return Run(read_scores(path), read_json(summary) if path.name == _SCORES and summary.is_file() else {})


def _show_run(root: Path, commit: str, name: str, path: PurePosixPath) -> Run:
    shown, summary = (_run_git(root, "show", f"{commit}:./{file}") for file in (path, path.with_name(_SUMMARY)))
    if shown.returncode != 0:
        raise InputError(
            f"{name}: its commit {commit[:10]} has no {path} ({shorten(shown.stderr)}); name a revision that "
            "`dvc repro` finished"
        )
    scores = parse_scores(shown.stdout, f"{name}:{path}")
    try:
        content = {} if summary.returncode else json.loads(summary.stdout)
        if not isinstance(content, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise InputError(
            f"{name}: its {_SUMMARY} cannot be read as JSON ({shorten(error)}); name another revision"
        ) from error
    return Run(scores, content)


def _run_git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise InputError(
            "git: not found on PATH; name a kept run or a CSV of scores, or install it to compare with revisions"
        ) from error


def read_scores(path: Path) -> pd.DataFrame:
    """Return the checked score table at `path`, sorted by image_id.

    Raises:
        InputError: the file cannot be read, or the table is faulty.
    """
    return _read_table(path, None)


def parse_scores(text: str, source: str) -> pd.DataFrame:
    """Return the score table in the CSV `text`, checked and sorted by image_id; `source` is its name in errors.

    Raises:
        InputError: no CSV, a missing column, no rows, an image twice, or a score that is not in [0, 1].
    """
    return _read_table(Path(source), text)


def _read_table(path: Path, text: str | None) -> pd.DataFrame:
    table = read_csv_table(path, COLUMNS, _CURE, "table of scores", text, _AT_THRESHOLDS)
    if table.empty:
        raise InputError(f"{path}: has no rows; {_CURE}")
    twice = table["image_id"][table["image_id"].duplicated()]
    if not twice.empty:
        raise InputError(f"{path}: image {twice.iloc[0]} has two rows; keep one")
    outside = table["image_id"][~table["ap"].between(0, 1)]
    if not outside.empty:
        raise InputError(f"{path}: image {outside.iloc[0]}: its ap is not in [0, 1]; {_CURE}")
    return table.sort_values("image_id", ignore_index=True)
