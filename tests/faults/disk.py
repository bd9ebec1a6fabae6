"""A full disk, a read-only folder, a file that vanishes, a process that dies, memory that runs out, a loss that is no
number, a request to stop: each ends in one clear error, and what was written before is as it was.
"""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.kills import finish
from tests.faults.workspace import (
    RESULTS,
    digest_results,
    find_leftovers,
    make_params,
    make_workspace,
    stage_command,
    write_params,
)

_STAGES = ("prepare", "folds", "train", "size", "predict_oof", "evaluate", "predict_testset", "submit")
_FILE_LIMIT = 100  # bytes: no output is as small
_DROP_BOUNDING_CAPABILITY, _OVERRIDE, _SEARCH = 24, 1, 2  # prctl(2), capabilities(7)


def limit_files() -> None:
    """Let no file grow beyond some bytes, which is what a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT, _FILE_LIMIT))


def obey_permissions() -> None:
    """Let the superuser obey the permissions of files as others do."""
    for capability in (_OVERRIDE, _SEARCH):
        ctypes.CDLL(None).prctl(_DROP_BOUNDING_CAPABILITY, capability, 0, 0, 0)


def limit_memory() -> None:
    """Let the process have 8 GiB of addresses."""
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))


def expect_error(
    folder: Path, stage: str, words: tuple[str, ...], before: Callable[[], None] | None = None, journal: bool = False
) -> None:
    """Run a stage that must fail with one line that has `words`, and leave all results as they were."""
    wanted = digest_results(folder)
    command = stage_command(folder, stage)
    if not journal:  # else the journal fails first
        command = [word for word in command if word not in ("--journal", ".resume/journal") or stage == "submit"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, preexec_fn=before, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    report = f"{stage}: exit {done.returncode}\n{done.stderr[-2000:]}"
    assert done.returncode == 1, report
    assert len(lines) == 1, report
    assert "Traceback" not in done.stderr, report
    assert all(word in lines[0] for word in words), report
    assert digest_results(folder) == wanted, f"{stage}: results changed"
    assert not find_leftovers(folder), find_leftovers(folder)


def check_full_disk(folder: Path, stages: tuple[str, ...] = _STAGES) -> int:
    """Run every stage on a full disk; return how many faults that were."""
    for stage in stages:
        expect_error(folder, stage, ("cannot be written", "File too large", "make room"), limit_files)
    return len(stages)


def check_read_only(folder: Path) -> int:
    """Run every stage with output folders that take no file."""
    of_members = ("folds/weights", "folds/sizes", "folds/oof", "folds/history", "submissions/probabilities")
    names = ("data/prepared", "folds", "submissions", *(f"{name}/main" for name in of_members))
    folders = [folder / name for name in names]
    for each in folders:
        each.chmod(0o555)
    try:
        for stage in _STAGES:
            expect_error(folder, stage, ("cannot be written", "Permission denied"), obey_permissions)
    finally:
        for each in folders:
            each.chmod(0o755)
    return len(_STAGES)


def check_vanished_files(folder: Path) -> int:
    """Run stages whose inputs are gone."""
    cases = (
        ("prepare", "data/sample/stage1_train.zip"),
        ("folds", "data/prepared/train/images.npz"),
        ("train", "data/prepared/train/table.csv"),
        ("train", "folds/folds.csv"),
        ("predict_oof", "folds/weights/main/0.safetensors"),
        ("predict_oof", "folds/sizes/main/0.safetensors"),
        ("evaluate", "folds/oof/main/1.npz"),
        ("evaluate", "folds/unseen.csv"),
        ("submit", "folds/trees.npz"),
        ("submit", "folds/decoding.json"),
        ("submit", "submissions/probabilities/main/1.npz"),
    )
    for stage, name in cases:
        aside = folder / "aside"
        (folder / name).rename(aside)
        try:
            expect_error(folder, stage, (name,))
        finally:
            aside.rename(folder / name)
    return len(cases)


def changed_params(folder: Path, **changes: dict[str, Any]) -> None:
    """Write params.yaml with other values in some sections; without any, as it was."""
    content = make_params()
    for section, values in changes.items():
        content[section] |= values
    write_params(folder, content)


def check_divergence(folder: Path) -> int:
    """Train with a learning rate that ruins the weights."""
    changed_params(folder, train={"lr": 1e30})
    expect_error(
        folder, "train", ("step ", " of 90: the loss became ", "learning rate of ", "images ", "last good state")
    )
    changed_params(folder)
    return 1


def check_memory(folder: Path) -> int:
    """Train and predict with more in a batch than memory holds."""
    changed_params(folder, train={"batch": 200_000})
    expect_error(folder, "train", ("memory ran out", "train.batch"), limit_memory)
    changed_params(folder)
    return 1


def check_dying_loader(folder: Path) -> int:
    """Kill a process that cuts tiles while a network trains."""
    changed_params(
        folder, train={"steps_per_epoch": 100_000}, housekeeping={"loader_workers": 1, "checkpoint_every_s": 0.5}
    )
    run = subprocess.Popen(stage_command(folder, "train"), cwd=folder, stderr=subprocess.PIPE, text=True)
    resume = folder / ".resume" / "members" / "main" / "fold0"
    shutil.rmtree(resume, ignore_errors=True)
    try:
        _await(lambda: len(list(resume.glob("*/newest.pt"))) > 0 and bool(_loader_of(run.pid)))
        os.kill(_loader_of(run.pid)[0], signal.SIGKILL)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
        changed_params(folder)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert run.returncode == 1, errors[-2000:]
    assert len(lines) == 1, errors[-2000:]
    assert "housekeeping.loader_workers" in lines[0], errors[-2000:]
    return 1


def check_requests_to_stop(folder: Path) -> int:
    """Ask a training to stop: it saves, says how to go on, and does not exit as if it were done."""
    for number in (signal.SIGTERM, signal.SIGINT):
        changed_params(folder, train={"steps_per_epoch": 100_000})
        shutil.rmtree(
            folder / ".resume" / "members" / "main" / "fold0", ignore_errors=True
        )  # so that a checkpoint is one of this training
        run = subprocess.Popen(
            stage_command(folder, "train"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            _await(lambda: len(list((folder / ".resume" / "members" / "main" / "fold0").glob("*/newest.pt"))) > 0)
            run.send_signal(number)
            output, errors = run.communicate(timeout=60)
        finally:
            run.kill()
            changed_params(folder)
        assert run.returncode == 130, errors[-2000:]
        assert "state saved; run the same command to go on" in output, output
    return 2


def _loader_of(parent: int) -> list[int]:
    """Return the loader's processes: children of the fork server, which is a child of the training."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(above, []).append(int(folder.name))
    return [number for child in children.get(parent, []) for number in children.get(child, [])]


def _await(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def check(seed: int) -> str:
    """Try all faults in one finished run."""
    del seed  # nothing here is drawn
    with tempfile.TemporaryDirectory() as name:
        folder = make_workspace(Path(name).resolve())
        finish(folder)
        wanted = digest_results(folder)
        faults = {
            "full disk": check_full_disk(folder),
            "read-only folder": check_read_only(folder),
            "vanished file": check_vanished_files(folder),
            "loss that is no number": check_divergence(folder),
            "no memory": check_memory(folder),
            "dead loader": check_dying_loader(folder),
            "request to stop": check_requests_to_stop(folder),
        }
        assert digest_results(folder, RESULTS) == wanted
    kinds = ", ".join(f"{count} {kind}" for kind, count in faults.items())
    return f"{sum(faults.values())} of {sum(faults.values())} faults end in a clear error, outputs intact ({kinds})"
