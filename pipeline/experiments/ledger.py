"""Kept runs: a folder of its own for each, and one ledger with a row per run.

In: the current run's files in the submissions and folds folders. Out: submissions/NAME/ with its submission, what that
is expected to score, run card and scores, and a row in submissions/ledger.csv, whose columns are the name and a subset
of the run card. The kept card holds what lies apart for the current run: what is equal in equal runs, and clock times,
revision and machine.
"""

import csv
import io
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import atomic_folder, read_json, sha256_of, write_json, write_text

LEDGER = "ledger.csv"
CARD = "run.json"
EXPECTED = "expected.csv"  # image by image
CONTENTS = "contents.json"  # of the files that DVC has: networks, size readers, predictions, candidates, trees
LOCAL_CARD = "run.local.json"  # not in git: what differs between equal runs

COLUMNS = (
    "name",
    "cv_map",
    "cv_std",
    "expected_lb",
    "expected_lb_low",
    "expected_lb_high",
    "lb_map",
    "wall_s",
    "seed",
    "threads",
    "device",
    "revision",
)

# A single name in a folder on any system: no separator, and nothing that begins like an option or a hidden file.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# Half a unit in the third decimal: a run card may be rounded for reading, never by more.
_CARD_TOLERANCE = 5e-4


def keep_run(
    name: str,
    submissions: Path,
    folds: Path,
    also: Sequence[Path] = (),
    contents: Mapping[str, str] | None = None,
    made: Path | None = None,
) -> Path:
    """Copy the current run to `submissions`/`name`, add its row to the ledger, and return the new folder.

    Where the local card is not that of this run, as in a fresh clone, what it would say stays null.

    Args:
        name: of the run.
        submissions: the folder of kept runs.
        folds: the current run's tables.
        also: other files of it to copy.
        contents: the MD5 of each file that DVC has of it, by its path; in `contents.json`.
        made: the folder of the run's submission and card; by default that of kept runs.

    Raises:
        InputError: the name is no plain name or is taken, a file of the run is missing or broken, or the run card
            and cv.json are of different runs.
    """
    target, own = check_new(name, submissions), made or submissions
    sources = [own / file for file in ("submission.csv", EXPECTED, CARD)]
    sources += [*(folds / file for file in ("cv.json", "scores.csv", "folds.csv")), *also]
    for source in sources:
        if not source.is_file():
            raise InputError(f"{source}: not there, so the run is not finished; run `dvc repro` first")
    card, cv = read_json(own / CARD), read_json(folds / "cv.json")
    if not math.isclose(_number(card, "cv_map"), _number(cv, "cv_map"), abs_tol=_CARD_TOLERANCE):
        raise InputError(
            f"{own / CARD}: its cv_map {card['cv_map']} is not the {cv['cv_map']} of {folds / 'cv.json'}, "
            "so they are of different runs; run `dvc repro` first"
        )
    card |= {key: value for key, value in read_local_card(own).items() if key not in card}
    # A row whose folder is gone (removed, or never finished) gives way to the new one.
    rows = [row for row in read_ledger(submissions) if row["name"] != name]
    with atomic_folder(target) as partial:
        for source in sources:
            shutil.copyfile(source, partial / source.name)
        write_json(partial / CARD, card)
        if contents is not None:
            write_json(partial / CONTENTS, dict(contents))
        _write_ledger(submissions, [*rows, _make_row(name, card)])
    return target


def check_new(name: str, submissions: Path) -> Path:
    """Return the folder that a run is to be kept in.

    Raises:
        InputError: the name is no plain name, or taken.
    """
    check_run_name(name)
    target = submissions / name
    if target.exists():
        raise InputError(f"{target}: there already; give another name, or remove it to keep the run anew")
    return target


def set_leaderboard_score(name: str, score: float, submissions: Path) -> None:
    """Write the leaderboard's score of the kept run `name` into its run card and its ledger row, as lb_map.

    Raises:
        InputError: no run is kept under this name, or the score is not in [0, 1].
    """
    if not 0 <= score <= 1:
        raise InputError(f"{name}: a leaderboard score of {score}; a mean average precision is in [0, 1]")
    path = kept_file(name, submissions, CARD)
    card = {**read_json(path), "lb_map": score}
    rows = read_ledger(submissions)
    row = _make_row(name, card)
    if any(old["name"] == name for old in rows):
        rows = [row if old["name"] == name else old for old in rows]
    else:
        rows.append(row)
    write_json(path, card)
    _write_ledger(submissions, rows)


def kept_file(name: str, submissions: Path, file: str) -> Path:
    """Return the path of `file` in the kept run `name`.

    Raises:
        InputError: the name is no plain name, or the run was not kept.
    """
    check_run_name(name)
    path = submissions / name / file
    if not path.is_file():
        raise InputError(f"{path}: not there; keep the run first (`python -m pipeline keep {name}`)")
    return path


def check_run_name(name: str) -> None:
    """Check that `name` can name a kept run's folder.

    Raises:
        InputError: it holds anything but letters, digits, dot, underscore and dash, or begins with one of these three.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: not a run's name; use letters, digits, `.`, `_` and `-`, a letter or digit first")


def read_ledger(submissions: Path) -> list[dict[str, str]]:
    """Return the ledger's rows in their order, as written; none if there is no ledger yet.

    Raises:
        InputError: the ledger is not a table with these columns.
    """
    path = submissions / LEDGER
    if not path.exists():
        return []
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in (*row, *row.values()) for row in rows):
        raise InputError(f"{path}: not a ledger with the columns {', '.join(COLUMNS)}; restore it with `git checkout`")
    return rows


def read_local_card(submissions: Path) -> dict[str, Any]:
    """Return what differs between equal runs, of the run in `submissions`; null where it is not known.

    It is not known where the file is missing, damaged, or of another run.
    """
    unknown: dict[str, Any] = {"wall_s": None, "device": None, "revision": None, "python": None, "epoch_seconds": {}}
    path = submissions / LOCAL_CARD
    try:
        local = read_json(path) if path.is_file() else {}
    except InputError:
        local = {}
    if local.get("run") != sha256_of(submissions / CARD):
        return unknown
    return {key: local.get(key, value) for key, value in unknown.items()}


def describe_run(name: str, card: Mapping[str, Any], digest: str) -> str:
    """Return the description of a run's upload: its name, its CV, its expected score, the digest of its file."""
    expected = card.get("expected_lb")
    hope = "" if expected is None else f", expected {expected:.3f}"
    return f"{name}: CV {card['cv_map']:.4f} +- {card['cv_std']:.4f}{hope} ({digest[:12]})"


def _number(content: dict[str, Any], key: str) -> float:
    value = content.get(key)
    if not isinstance(value, int | float):
        raise InputError(f"{key} is {value!r} in the run's files; run `dvc repro` to score the run")
    return float(value)


def _make_row(name: str, card: dict[str, Any]) -> dict[str, str]:
    missing = [column for column in COLUMNS[1:] if column not in card]
    if missing:
        raise InputError(f"{name}: its run card lacks {', '.join(missing)}; run `dvc repro` to write it again")
    return {"name": name} | {key: "" if card[key] is None else str(card[key]) for key in COLUMNS[1:]}


def _write_ledger(submissions: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(submissions / LEDGER, text.getvalue())
