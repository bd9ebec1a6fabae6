"""Runs that are killed at random moments, and go on: `dvc repro` ends in the same bytes as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pipeline.launch import OWNER, PER_FOLD, PER_SHARE
from tests.faults.workspace import RESULTS, clear_results, digest_results, find_leftovers, make_workspace

_LONGEST_WAIT = 0.2  # before a kill, of the seconds that a whole run takes
_START_S = 120.0  # by then the stages of two folds must have run at once
_ORPHAN_S = 40.0  # by then whatever a killed DVC has left running must have ended
_WAYS = ("dvc alone", "stage alone", "process group", "while writing")


def start(folder: Path, *arguments: str, module: str = "dvc") -> subprocess.Popen[bytes]:
    """Start DVC, or the command line, in a session of its own, as a terminal does, after DVC's own files are mended."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    subprocess.run(["make", "-s", "mend-dvc"], cwd=folder, env=variables, check=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=variables,
        )  # fmt: skip


def processes_of(session: int) -> dict[int, list[str]]:
    """Return the command lines of the living processes of a session, by their number."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().split("\0")
        except (OSError, ValueError, IndexError):
            continue
    return found


def stage_of(processes: dict[int, list[str]]) -> tuple[int, str] | None:
    """Return the number and name of the stage that is running, if one is."""
    for number, words in sorted(processes.items()):
        if "pipeline.stages" in words and words[0].endswith("python"):
            return number, words[words.index("pipeline.stages") + 1]
    return None


def kill_once(run: subprocess.Popen[bytes], folder: Path, way: str, wait_s: float) -> str | None:
    """Kill a run after `wait_s`, and wait until all of it is gone; return the stage that it hit.

    None where the run had ended before.

    Raises:
        AssertionError: something of it went on running.
    """
    end = time.monotonic() + wait_s
    while time.monotonic() < end and run.poll() is None:
        time.sleep(0.002 if way == "while writing" else 0.05)
        if way == "while writing" and time.monotonic() > end - wait_s / 2 and find_leftovers(folder):
            break
    if run.poll() is not None:
        return None
    stage = stage_of(processes_of(run.pid))
    if way == "stage alone" and stage:
        os.kill(stage[0], signal.SIGKILL)
    elif way == "dvc alone":
        run.kill()
    else:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    end = time.monotonic() + _ORPHAN_S
    while processes_of(run.pid):
        assert time.monotonic() < end, f"{way}: still running: {processes_of(run.pid)}"
        time.sleep(0.05)
    return stage[1] if stage else "dvc itself"


def finish(folder: Path, *targets: str) -> None:
    """Run to the end."""
    code = start(folder, "repro", *targets).wait()
    assert code == 0, f"dvc repro ended in {code}:\n{(folder / 'log.txt').read_text(errors='replace')[-3000:]}"


def compare(folder: Path, wanted: dict[str, str], code: int, when: str) -> None:
    """Compare the results of a run that ended in `code` with what they must be."""
    log = (folder / "log.txt").read_text(errors="replace")[-4000:]
    assert code == 0, f"{when}: dvc repro ended in {code}:\n{log}"
    found = digest_results(folder, wanted)
    other = [name for name in wanted if found[name] != wanted[name]]
    assert not other, f"{when}: {other} differ:\n{log}"
    assert not find_leftovers(folder), find_leftovers(folder)


def check(kills: int, seed: int, targets: tuple[str, ...] = ()) -> str:
    """Kill runs `kills` times, let each go on to its end, and compare with one that was left alone."""
    rng, hit, runs = random.Random(seed), Counter[str](), 1
    with tempfile.TemporaryDirectory() as name:
        folder = make_workspace(Path(name).resolve())
        begin = time.monotonic()
        finish(folder, *targets)
        longest_s = _LONGEST_WAIT * (time.monotonic() - begin)
        wanted = digest_results(folder)
        assert targets or "missing" not in wanted.values(), wanted
        clear_results(folder)
        while hit.total() < kills:
            way = _WAYS[hit.total() % len(_WAYS)]
            run = start(folder, "repro", *targets)
            stage = kill_once(run, folder, way, rng.uniform(0.1, 1) * longest_s)
            if stage is None:
                runs += 1
                compare(folder, wanted, run.returncode, f"seed {seed}, after {hit.total()} kills")
                clear_results(folder)
            else:
                hit[stage] += 1
        compare(folder, wanted, start(folder, "repro", *targets).wait(), f"seed {seed}, after {hit.total()} kills")
    places = ", ".join(f"{count} in {stage}" for stage, count in hit.most_common())
    return f"{kills} of {kills} kills survived ({places}); {runs} runs, each the same bit for bit"


def check_side_by_side(seed: int) -> str:
    """Run folds side by side, kill that on its way, and start two runs at once: the bytes of one fold after another."""
    del seed  # nothing here is drawn
    with tempfile.TemporaryDirectory() as name:
        folder = make_workspace(Path(name).resolve())
        finish(folder)
        wanted = digest_results(folder, [*RESULTS, "dvc.lock"])
        clear_results(folder)
        run = start(folder, "run", "--jobs", "2", module="pipeline")
        kill_owner(run, folder, stages=2)
        code = start(folder, "run", "--jobs", "2", module="pipeline").wait()
        compare(folder, wanted, code, "folds side by side, killed once")
        (folder / "log.txt").unlink()
        finish(folder)
        log = (folder / "log.txt").read_text()
        assert "Running stage" not in log, f"after folds side by side there is something to do:\n{log}"
        runs = [start(folder, "repro") for _ in range(2)]
        codes = sorted(run.wait() for run in runs)
        assert codes[0] == 0, codes
        assert digest_results(folder, wanted) == wanted
        clear_results(folder)
        check_queue(folder, wanted)
    second = "waited for the first" if codes[1] == 0 else "was refused"
    return f"two folds side by side, killed once, then two runs at once (the second {second}): the same bit for bit"


def check_queue(folder: Path, wanted: dict[str, str]) -> None:
    """Let the queue of a cluster run folds and test set, as `template slurm` says it, and compare the results.

    Raises:
        AssertionError: they are others, or DVC does not know them.
    """
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for what in ([], ["testset"]):  # folds, where nothing is named
        command = [sys.executable, "-m", "pipeline", "template", "slurm", *what]
        script = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        for number in "10":
            job = variables | {"SLURM_ARRAY_TASK_ID": number}
            subprocess.run(["bash"], input=script, text=True, env=job, check=True)
    (folder / "log.txt").unlink()
    code = start(folder, "run", module="pipeline").wait()
    compare(folder, wanted, code, "folds and test set as jobs of a queue")
    log = (folder / "log.txt").read_text()
    assert not any(f"Running stage '{stage}@" in log for stage in (*PER_FOLD, *PER_SHARE)), log
    finish(folder)
    assert "Running stage" not in (folder / "log.txt").read_text()[len(log) :]


def kill_owner(run: subprocess.Popen[bytes], folder: Path, stages: int) -> None:
    """Kill a run of folds side by side while so many stages run, and wait until all of it is gone.

    Raises:
        AssertionError: so many never ran, or something went on running.
    """
    end = time.monotonic() + _START_S
    while sum(stage_of({number: words}) is not None for number, words in owned_by(run.pid).items()) < stages:
        assert run.poll() is None, (folder / "log.txt").read_text(errors="replace")[-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    run.kill()
    run.wait()
    await_orphans(run.pid)


def await_orphans(owner: int) -> None:
    """Wait until all is gone that a run has started. Raises AssertionError where something goes on."""
    end = time.monotonic() + _ORPHAN_S
    while found := owned_by(owner):
        assert time.monotonic() < end, f"still running: {found}"
        time.sleep(0.05)


def owned_by(owner: int) -> dict[int, list[str]]:
    """Return the command lines of the living processes that a run has started, and that what it started has."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{OWNER}={owner}" in (folder / "environ").read_text(errors="replace").split("\0"):
                found[int(folder.name)] = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
    return found
