"""Kept runs as checkouts: what DVC has of them is laid out where `predict` and others take it."""

import shutil
from pathlib import Path

from pipeline.commands.command import FOLDS, PARAMS, SUBMISSIONS
from pipeline.errors import InputError

KEPT = Path(".resume/kept")
# Of a run, what DVC has and git does not. The networks are what a source may forbid to hand on.
NETWORKS = (f"{FOLDS}/weights", f"{FOLDS}/sizes")
OTHERS = (
    *(f"{FOLDS}/{name}" for name in ("oof", "candidates.npz", "trees.npz", "oof.csv", "signals.csv")),
    f"{SUBMISSIONS}/probabilities",
)


def find_run(run: Path) -> Path:
    """Return the checkout of a run: the folder itself, or that of a kept run which goes by this name.

    Raises:
        InputError: a kept run's networks are not to be had.
    """
    is_name = run.name == str(run) and not (run / PARAMS).is_file()
    return lay_out(run.name, for_networks=True) if is_name and (SUBMISSIONS / run.name).is_dir() else run


def lay_out(name: str, for_networks: bool = False) -> Path:
    """Bring the files of a kept run back, into a folder of its own, laid out as a checkout; return it.

    Raises:
        InputError: no run is kept so, it was kept without its files, or neither DVC's cache nor its remote has them.
    """
    from pipeline.engine.contents import fetch_contents
    from pipeline.experiments.ledger import CONTENTS, kept_file
    from pipeline.files import atomic_path, read_json

    kept_file(name, SUBMISSIONS, "scores.csv")
    path, root = SUBMISSIONS / name / CONTENTS, KEPT / name
    if not path.is_file():
        raise InputError(f"{path}: not there: {name} was kept by a version that did not keep networks; train it again")
    contents = read_json(path)
    if not any(each.startswith(NETWORKS if for_networks else f"{FOLDS}/") for each in contents):
        raise InputError(
            f"{name}: kept without its networks: DVC did not make the run, or `ship` is false of a source that they "
            "learnt from"
        )
    fetch_contents(contents, root)
    for file in (PARAMS, *(FOLDS / each for each in ("folds.csv", "scores.csv", "cv.json", "decoding.json"))):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(root / file) as partial:
            shutil.copyfile(SUBMISSIONS / name / file.name, partial)
    return root
