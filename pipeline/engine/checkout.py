"""DVC on this checkout: bring stages up to date, and mend what a kill leaves of DVC's own files.

In and out: the checkout that is the current folder.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.engine.work import Work
from pipeline.errors import InputError, shorten
from pipeline.files import write_text
from pipeline.launch import OWNER
from pipeline.params import DataParams
from pipeline.yaml_files import read_yaml

_TMP, _RUNS = Path(".dvc/tmp"), Path(".dvc/cache/runs")


def dvc_command(*words: str) -> tuple[str, ...]:
    """Return a command of DVC that waits for what another DVC writes."""
    return (sys.executable, "-m", "dvc", "--wait-for-lock", *words)


def dvc_environment() -> Mapping[str, str]:
    """Return what a DVC that this process starts has in its environment.

    Stages are started by this Python, and end with this process. DVC's own cache holds pickles; by default it lies
    where every user of the machine may write.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"PATH": path, OWNER: str(os.getpid()), "DVC_SITE_CACHE_DIR": str((_TMP / "site").absolute())}


def check_archives(data: DataParams) -> None:
    """Refuse a folder of archives that is not there: of DVC's error one cannot tell what to do.

    Raises:
        InputError: it is missing.
    """
    if not Path(data.dir).exists():
        raise InputError(
            f"{data.dir}: no such folder; `python -m pipeline fetch fixes` and `fetch bbbc038` get the competition's "
            "archives, to data/dsb2018; name the folder of other ones by data.dir in params.yaml"
        )


def find_stale(work: Work, items: Iterable[str]) -> dict[str, list[str]]:
    """Return the stages that DVC would run, by the item that they are of; items without any are left out.

    Raises:
        InputError: DVC cannot tell.
    """
    targets = {target: item for item in items for target in work.targets([item])}
    command = dvc_command("status", "--json", *targets)
    asked = subprocess.run([*command], capture_output=True, text=True, env={**os.environ, **dvc_environment()})
    try:
        changed = [*json.loads(asked.stdout)]
    except ValueError as error:
        raise InputError(f"`dvc status` failed: {shorten(asked.stderr, 1000)}") from error
    stale: dict[str, list[str]] = {}
    for target, item in targets.items():
        if target in changed:
            stale.setdefault(item, []).append(target.partition("@")[0])
    return stale


def order_lock() -> None:
    """Put the stages of dvc.lock into dvc.yaml's order, in which one DVC alone writes them; the rest stays as it is."""
    lock = Path("dvc.lock")
    if not lock.is_file():
        return
    head, begin, text = lock.read_text().partition("\nstages:\n")
    blocks = re.split(r"(?m)^(?=  \S)", text)
    names, members = list(read_yaml(Path("dvc.yaml"))["stages"]), list(read_yaml(Path("params.yaml"))["member_ids"])

    def place(block: str) -> tuple[int, int, int]:
        name, _, item = block.strip().partition(":")[0].partition("@")
        member, _, number = item.rpartition("-")
        places = [each.index(one) if one in each else len(each) for each, one in ((names, name), (members, member))]
        return places[0], places[1], int(number or 0)

    ordered = "".join(sorted(blocks, key=place))
    if ordered != text:
        write_text(lock, f"{head}{begin}{ordered}")


def mend() -> None:
    """Remove what would keep DVC from running: a lock file that a kill cut short, empty folders in the cache of runs.

    DVC writes the file in place, and makes a folder before it writes into it.
    """
    lock = _TMP / "rwlock"
    if lock.is_file():
        try:
            json.loads(lock.read_text())
        except ValueError:
            lock.unlink()
    for folder in sorted(_RUNS.glob("**/"), reverse=True) if _RUNS.is_dir() else ():
        if folder != _RUNS:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
