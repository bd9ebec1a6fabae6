"""The stages of one fold, or of one share, one after another, without DVC: the one job that every cluster is handed.

In: a folder that holds what `storage.lay_out` puts there. Out: the results of the stages, where dvc.yaml has them, and
a marker for each stage that is done, with the digests of its results. A stage that is done is not run again.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pipeline.engine.jobs import Job, run_alone
from pipeline.engine.work import Work
from pipeline.errors import InputError, shorten
from pipeline.files import read_json, sha256_of, write_json
from pipeline.launch import OWNER, settle_threads
from pipeline.provenance import check_runtime, describe_environment
from pipeline.yaml_files import read_yaml

MARKERS = Path(".resume/done")
ENVIRONMENT, RUNTIME = Path("environment.json"), Path("runtime.json")


class Stage(NamedTuple):
    """A stage of one item: its arguments, as dvc.yaml has them, and the files that it writes."""

    name: str
    item: str
    words: list[str]
    outs: list[Path]

    @property
    def marker(self) -> Path:
        """The file that says that it is done."""
        return MARKERS / f"{self.name}.{self.item}.json"


def read_chain(folder: Path, work: Work, item: str) -> list[Stage]:
    """Return the stages of an item in the order in which they need one another, as the dvc.yaml of `folder` says."""
    stages = read_yaml(folder / "dvc.yaml")["stages"]
    chain = []
    for name in work.stages:
        command = _fill(stages[name]["cmd"], work, item)
        outs = [next(iter(out)) if isinstance(out, dict) else out for out in stages[name]["outs"]]
        chain.append(Stage(name, item, shlex.split(command)[1:], [Path(_fill(out, work, item)) for out in outs]))
    return chain


def _fill(text: str, work: Work, item: str) -> str:
    for key, value in zip(("member", work.name), work.items[item], strict=True):
        text = text.replace(f"${{item.{key}}}", str(value))
    if left := re.search(r"\$\{.*?\}", text):
        named = f"${{item.member}} and ${{item.{work.name}}}"
        raise InputError(f"dvc.yaml: {left[0]} in a stage of each {work.name}; it may name {named} alone")
    return text


def is_done(folder: Path, stage: Stage) -> bool:
    """Return whether a stage was run in `folder` and what it wrote is still there, byte for byte."""
    marker = folder / stage.marker
    if not marker.is_file():
        return False
    try:
        digests = read_json(marker)
    except InputError:
        return False
    paths = {out: folder / out for out in stage.outs}
    return all(path.is_file() and digests.get(str(out)) == sha256_of(path) for out, path in paths.items())


def run_chain(work: Work, item: str) -> int:
    """Run the stages of a fold or share that are not done, in the current folder, and return an exit status.

    It is that of the first stage that failed, as a shell counts it: above 128 where a signal ended it.

    Raises:
        InputError: the current folder was not laid out for it, or this machine differs from the one that did.
        KeyboardInterrupt: this process was asked to stop; the stage has saved its state.
    """
    if not ENVIRONMENT.is_file():
        raise InputError(
            f"{ENVIRONMENT}: not here; --{work.name} is for a folder that `template` or `--engine ray` has laid out, "
            "and without it all of a checkout is run"
        )
    check_environment(Path())
    check_runtime(RUNTIME, find_runtime())
    for stage in read_chain(Path(), work, item):
        if is_done(Path(), stage):
            print(f"{stage.name}, {work.name} {item}: done before", flush=True)
            continue
        print(f"{stage.name}, {work.name} {item}", flush=True)
        job = Job(stage.name, (sys.executable, *stage.words), None)
        if status := run_alone(job, {OWNER: str(os.getpid())}):
            return status if status > 0 else 128 - status
        write_json(stage.marker, {str(out): sha256_of(out) for out in stage.outs})
    return 0


def check_environment(folder: Path) -> None:
    """Refuse to work in a folder that another Python, or other packages, laid out.

    Raises:
        InputError: what differs.
    """
    wanted, own = read_json(folder / ENVIRONMENT), describe_environment()
    if other := [
        f"{name} {own.get(name)} in place of {wanted[name]}" for name in wanted if own.get(name) != wanted[name]
    ]:
        raise InputError(f"{platform.node()} has {', '.join(other)}: its results would be others; install the same")


def find_runtime() -> dict[str, str]:
    """Return what `runtime.device` and `runtime.precision` of params.yaml come to on this machine, and what kind it is.

    Raises:
        InputError: there is no such device.
    """
    settle_threads()
    asked = subprocess.run([sys.executable, "-m", "pipeline.engine.own_kind"], capture_output=True, text=True)
    if asked.returncode:
        raise InputError(f"{platform.node()}: no place to run networks: {shorten(asked.stderr[-200:])}")
    found: dict[str, str] = json.loads(asked.stdout.splitlines()[-1])  # behind what it warns of
    return found
