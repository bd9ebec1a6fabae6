"""Row 10: what DVC itself adds to a run, with the prepared data packed, and with a file for each of its arrays.

A pipeline of dvc.yaml's shape, prepared data that nine stages read, whose stages do nothing but link and echo. The
same pipeline over empty data is what any run costs, its ten stages above all; it is taken off both sides. DVC runs in
this process, so that Python's start is in none.
"""

import hashlib
import logging
import shutil
import statistics
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from dvc.repo import Repo

from pipeline.images.splits import PreparedSplit
from tests.benchmarks.harness import Report, Row, Setting, format_seconds, seconds_of

CONSUMERS = 9  # folds, train and predict_oof of three folds, evaluate, report
RUNS = 5  # with everything to do
IDLE_RUNS = 5  # with nothing to do, after each of them


def reproduce(root: Path) -> None:
    """Do what `dvc repro` does."""
    with chdir(root), Repo() as repo:
        repo.reproduce()


def make_repository(root: Path, source: Path) -> None:
    """Make a DVC repository whose first stage makes the folder `source` its output."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    # Hard links take no time to speak of: what is left is DVC's.
    prepare = {"cmd": f"cp -rl {source.resolve()} prepared", "deps": ["archive"], "outs": ["prepared"]}
    stages: dict[str, Any] = {"prepare": prepare}
    for number in range(CONSUMERS):
        out = f"out{number}"
        stages[f"read{number}"] = {"cmd": f"echo {number} > {out}", "deps": ["prepared"], "outs": [out]}
    (root / "archive").touch()
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    Repo.init(str(root), no_scm=True).close()


def write_arrays(split: PreparedSplit, folder: Path) -> int:
    """Write each image and each label map to a file of its own, as they are used, and return how many there are."""
    folder.mkdir()
    for kind, arrays in (("image", split.images()), ("label_map", split.label_maps())):
        for image_id, array in arrays:
            np.save(folder / f"{image_id}.{kind}.npy", array)
    return 2 * len(split)


def run(setting: Setting) -> Report:
    logging.getLogger("dvc").setLevel(logging.ERROR)
    scratch = (setting.scratch / "dvc").resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    sources = {name: scratch / name for name in ("empty", "packed", "arrays")}
    for source in sources.values():
        source.parent.mkdir(parents=True, exist_ok=True)
    sources["empty"].mkdir()
    (sources["empty"] / "nothing").touch()
    shutil.copytree(setting.prepared / "train", sources["packed"])
    files = write_arrays(setting.split, sources["arrays"])
    seconds: dict[str, dict[str, list[float]]] = {"everything": {}, "nothing": {}}
    for _ in range(RUNS):
        for name, source in sources.items():
            root = scratch / f"repository-{name}"
            make_repository(root, source)
            for kind, runs in (("everything", 1), ("nothing", IDLE_RUNS)):
                for _ in range(runs):
                    seconds[kind].setdefault(name, []).append(seconds_of(lambda at=root: reproduce(at)))
    with (sources["packed"] / "images.npz").open("rb") as file:
        hashing = seconds_of(lambda: hashlib.file_digest(file, "md5"))
    shutil.rmtree(scratch)
    limit = f"; the MD5 of these bytes alone takes {format_seconds(hashing)}, and DVC copies them to its cache too"
    return Report([_row("10a", "nothing", files, seconds), _row("10b", "everything", files, seconds, limit)])


def _row(number: str, kind: str, files: int, seconds: dict[str, dict[str, list[float]]], limit: str = "") -> Row:
    empty, packed, arrays = (seconds[kind][name] for name in ("empty", "packed", "arrays"))
    start = statistics.median(empty)
    # A difference below what the runs over empty data differ by themselves is told as that much.
    quarter, _, three_quarters = statistics.quantiles(empty, n=4)
    resolution = three_quarters - quarter
    ours, theirs = (max(statistics.median(side) - start, resolution) for side in (packed, arrays))
    less = "at least " if ours == resolution else ""
    note = (
        f"medians of {len(empty)} runs: {format_seconds(statistics.median(packed))} packed, "
        f"{format_seconds(statistics.median(arrays))} with {files} files, {format_seconds(start)} over empty data, "
        f"half of whose runs lie within {format_seconds(resolution)}{limit}"
    )
    what = f"DVC's own share, {kind} to do, stage1_train in one file"
    against = f"a file for each of its {files} arrays"
    reached = f"{less}{theirs / ours:.2g}x less"
    return Row(number, what, against, reached, ">= 10x less", format_seconds(ours), format_seconds(theirs), note)
