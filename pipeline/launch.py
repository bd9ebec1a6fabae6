"""How a stage is started: `python -m pipeline.stages NAME --ARGUMENT VALUE ...`, an argument per parameter of its main.

In: the command line, whose values come from dvc.yaml's `cmd`, so no stage spells a path. Out: the call, a status that
DVC understands, and an entry in the journal, the git-ignored folder of what differs between equal runs.
"""

import argparse
import inspect
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from pipeline.errors import InputError, one_line_errors
from pipeline.files import read_json, write_json
from pipeline.params import Params, load_params

# How often a stage looks whether the DVC that started it is still there, and how long it then has to stop.
_LOOK_S, _GRACE_S = 0.5, 30.0
_GENERATIONS = 4  # a shell, DVC, and what has started that, are no farther
# In the environment: the number of the process that a stage, and whatever has started it, is not to outlive.
OWNER = "PIPELINE_OWNER"

# The stages whose seconds are a run's: those that run once, and those that run once for each fold, or for each share of
# the test set.
_WHOLE = ("prepare", "folds", "evaluate")
PER_FOLD, PER_SHARE = ("train", "size", "predict_oof"), ("predict_testset",)


def run(main: Callable[..., dict[str, Any] | None], words: Sequence[str] | None = None, loaded_s: float = 0.0) -> None:
    """Parse `words`, or the command line, into the parameters of `main` (paths, integers, `params`) and call it.

    With `--member NAME` the parameters are those of a member. With `--journal FOLDER` the seconds that the stage took
    are kept there, in `STAGE.json` or `STAGE.MEMBER-NUMBER.json`, with what `main` returns; its own `seconds` take
    precedence. Beside them stands `loaded_too_s`, with the `loaded_s` before this call, in which the stage's modules
    were loaded. An `InputError` ends in one line on stderr and exit status 1, and so does memory that runs out.
    SIGTERM, SIGHUP and Ctrl-C end in status 130, and so does the death of the DVC that started the stage: an orphan
    must not go on writing.
    """
    arguments = inspect.signature(main, eval_str=True).parameters.values()
    stage = Path(inspect.getfile(main)).stem
    parser = argparse.ArgumentParser(prog=f"python -m pipeline.stages {stage}", description=inspect.getdoc(main))
    for argument in arguments:
        kind = Path if argument.annotation is Params else argument.annotation
        parser.add_argument(f"--{argument.name.replace('_', '-')}", type=kind, required=True)
    if "journal" not in {argument.name for argument in arguments}:
        parser.add_argument(
            "--journal",
            type=Path,
            help="a folder in which to note the seconds that this took, and what else differs from run to run",
        )
    parser.add_argument("--member", help="of `members` in params.yaml: the parameters are this member's")
    values = vars(parser.parse_args(words))
    member = values.pop("member")
    journal = values["journal"] if "journal" in inspect.signature(main).parameters else values.pop("journal")
    begin = time.monotonic()
    stop_on_request()
    with one_line_errors("stopped; nothing half-written is left: run the same command to go on"):
        if "params" in values:
            values["params"] = load_params(values["params"], member)
        noted = main(**values) or {}
        if journal:
            numbers = [values[key] for key in ("fold", "share") if key in values]
            name = _journal_name(stage, *([f"{member}-{numbers[0]}"] if member and numbers else numbers))
            taken = time.monotonic() - begin
            seconds = {"seconds": round(taken, 1), "loaded_too_s": round(loaded_s + taken, 1)}
            write_json(journal / name, seconds | noted)


def settle_threads() -> None:
    """Settle what libraries would read of threads and kernels in the environment; call it before they are loaded.

    Threads wait for one another in a loop for some microseconds, and then asleep. By default the loop takes their core
    for much longer, perhaps from the very thread that they wait for, where another process wants one too; without it a
    core that has nothing else to do is woken too late: `make bench only=busy` measures both. Sums of numpy are made by
    one thread, whatever the cores, and kernels are chosen by the machine alone.
    """
    os.environ |= {"GOMP_SPINCOUNT": "600", "OPENBLAS_NUM_THREADS": "1"}
    for name in ("OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        os.environ.pop(name, None)


def stop_on_request() -> None:
    """Let SIGTERM and SIGHUP stop the process as Ctrl-C does.

    So does the end of DVC, which kills no stage itself, and that of the owner which the environment names.
    """
    catch_requests()
    if OWNER in os.environ:
        owner = int(os.environ[OWNER])
        _watch(lambda: owner in _list_ancestors())
    elif "DVC_STAGE" in os.environ:  # as DVC tells those that it starts
        starters = _find_starters()
        # DVC may have gone while the stage's imports ran: then process 1 is in its place, which may be DVC itself, in a
        # container.
        if starters[-1:] == [1] and "dvc" not in _describe(psutil.Process(1)):
            starters = []
        _watch(lambda: _find_starters() == starters)


def catch_requests() -> None:
    """Let SIGTERM, SIGHUP and Ctrl-C raise KeyboardInterrupt: again, where a library has taken the signals since."""

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # a second request would break off the cleaning up after the first
        raise KeyboardInterrupt

    for number in numbers:
        # nohup ignores SIGHUP, and is to go on doing so.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def _watch(is_wanted: Callable[[], bool]) -> None:
    """Ask this process to stop once it is not wanted any more, and end it where it does not."""

    def look() -> None:
        while is_wanted():
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(130)

    threading.Thread(target=look, daemon=True).start()


def _list_ancestors() -> list[int]:
    return [process.pid for process in _find_parents()]


def _find_starters() -> list[int]:
    """Return the parent of this process, and, where that is a shell, the one that started the shell."""
    parents = _find_parents()
    is_shell = bool(parents) and _describe(parents[0]).partition(" ")[0].endswith("sh")
    return [process.pid for process in parents[: 1 + is_shell]]


def _find_parents() -> list[psutil.Process]:
    """Return the nearest ancestors of this process, up to one that ends meanwhile."""
    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        process = psutil.Process().parent()
        while process is not None and len(found) < _GENERATIONS:
            found.append(process)
            process = process.parent()
    return found


def _describe(process: psutil.Process) -> str:
    """Return the command line of a process; empty where this one may not know it, or it has just gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _journal_name(stage: str, item: str | int | None = None) -> str:
    return f"{stage}.json" if item is None else f"{stage}.{item}.json"


class Journal(NamedTuple):
    """What a journal holds of the current run: what differs from one equal run to the next.

    Attributes:
        wall_s: seconds that the stages up to `predict_testset` took when they last ran; None where none was noted.
        epoch_seconds: by member and fold, as `main-0`, the seconds of its training at each epoch's end.
    """

    wall_s: float | None
    epoch_seconds: dict[str, list[float]]


def read_journal(journal: Path, members: Sequence[str], folds: Sequence[int], shares: Sequence[int]) -> Journal:
    """Return what the stages noted in the folder `journal`; what is missing or damaged is left out.

    Entries of other members, folds and shares than these are what an earlier run with more of them left behind.
    """
    of_folds, of_shares = ([f"{one}-{number}" for one in members for number in numbers] for numbers in (folds, shares))
    names = [_journal_name(stage) for stage in _WHOLE]
    names += [_journal_name(stage, item) for stage in PER_FOLD for item in of_folds]
    names += [_journal_name(stage, item) for stage in PER_SHARE for item in of_shares]
    seconds = [entry["seconds"] for name in names if (entry := _read_entry(journal / name))]
    trained = {item: _read_entry(journal / _journal_name("train", item)) for item in of_folds}
    epochs = {item: entry["epoch_seconds"] for item, entry in trained.items() if "epoch_seconds" in entry}
    return Journal(round(sum(seconds), 1) if seconds else None, epochs)


def read_seconds(journal: Path) -> dict[str, float]:
    """Return how long each stage of the folder `journal` took, by DVC's name for it: `train@main-0`.

    That is from its start to its end, or what a stage that was stopped and went on says itself, where that is longer.
    """
    entries = {path.stem.replace(".", "@"): _read_entry(path) for path in sorted(journal.glob("*.json"))}
    return {
        name: max(entry["seconds"], entry.get("loaded_too_s", 0.0))
        for name, entry in entries.items()
        if "seconds" in entry
    }


def _read_entry(path: Path) -> dict[str, Any]:
    """Return a stage's entry; empty where there is none, or it is damaged: a journal decides no result."""
    try:
        entry = read_json(path)
    except InputError:
        return {}
    numbers = [
        entry.get("seconds"),
        entry.get("loaded_too_s", 0.0),
        *(epochs if isinstance(epochs := entry.get("epoch_seconds", []), list) else [None]),
    ]
    is_sound = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
    return entry if is_sound and all(map(math.isfinite, numbers)) else {}
