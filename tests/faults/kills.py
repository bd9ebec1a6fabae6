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

from tests.faults.workspace import clear_results, digest_results, find_leftovers, make_workspace

_LONGEST_WAIT = 0.2  # before a kill, of the seconds that a whole run takes
_ORPHAN_S = 40.0  # by then whatever a killed DVC has left running must have ended
_WAYS = ("dvc alone", "stage alone", "process group", "while writing")


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start DVC in a session of its own, as a terminal does, after what `make repro` does before it."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    subprocess.run(["make", "-s", "mend-dvc"], cwd=folder, env=variables, check=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
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
        names = [word.removeprefix("pipeline.stages.") for word in words if word.startswith("pipeline.stages.")]
        if names and words[0].endswith("python"):
            return number, names[0]
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
    found = digest_results(folder)
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
    """Train two folds at once, and start two whole runs at once: the same results as one after another."""
    del seed  # nothing here is drawn
    with tempfile.TemporaryDirectory() as name:
        folder = make_workspace(Path(name).resolve())
        finish(folder)
        wanted = digest_results(folder)
        clear_results(folder)
        finish(folder, "prepare", "folds")
        runs = [start(folder, "--wait-for-lock", "repro", "-s", f"train@{fold}") for fold in (0, 1)]
        assert [run.wait() for run in runs] == [0, 0], (folder / "log.txt").read_text(errors="replace")[-3000:]
        runs = [start(folder, "repro") for _ in range(2)]
        codes = sorted(run.wait() for run in runs)
        assert codes[0] == 0, codes
        assert digest_results(folder) == wanted
    second = "waited for the first" if codes[1] == 0 else "was refused"
    return f"two folds side by side, then two runs at once (the second {second}): the same bit for bit"
