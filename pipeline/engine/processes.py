"""A run on all of one machine: `dvc repro`, but for folds, and shares of the test set, side by side.

A fold's chain of stages needs nothing of other folds, so a DVC of its own brings it up to date, which locks the files
that it reads and writes; so it is with shares. What they bring up to date, a later DVC has nothing to do for; all
else is left to one DVC, before and after. In and out: the checkout that is the current folder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.engine.chain import RUNTIME, find_runtime
from pipeline.engine.checkout import dvc_command, dvc_environment, find_stale, mend, order_lock
from pipeline.engine.jobs import Job, read_log, run_alone, run_side_by_side
from pipeline.engine.machine import Place
from pipeline.engine.storage import adopt, list_unfinished, name_folder
from pipeline.engine.work import Work
from pipeline.errors import InputError
from pipeline.files import hold
from pipeline.progress import say
from pipeline.provenance import check_runtime

LOGS, _HOLD = Path(".resume/logs"), Path(".resume/run.lock")
_GRACE_S = 45.0  # in which what an earlier run has started saves its state


def run_on_processes(parts: Sequence[Work], places: Sequence[Place], storage: Path | None = None) -> None:
    """Bring the checkout up to date, its folds side by side at `places`, and then the shares of its test set.

    Args:
        parts: what is handed out, of `list_work`.
        places: for a fold or share each at a time.
        storage: where a cluster may have finished some (`template`); these are taken from there.

    Raises:
        InputError: a stage failed; the folds that did not fail are up to date, and the logs of all lie in LOGS. Or
            another run is at work here.
        KeyboardInterrupt: this process was asked to stop; trainings have saved their states.
    """
    with held_checkout() as handle:
        repro("folds", handle=handle)  # and what it needs
        for work in parts:
            if len(work.items) == 1 and work is parts[-1] and storage is None:
                break  # nothing goes beside it, nor was any of it done elsewhere: DVC's last run is enough
            stale = [*find_stale(work, work.items)]
            if storage and stale:
                stale = take_finished(storage, work, stale)
            if len(stale) > 1:
                _run_work(work, stale, places, handle)
            elif stale:  # one alone needs no log of its own
                repro(*work.targets(stale), handle=handle)
        repro(handle=handle)


def take_finished(storage: Path, work: Work, items: Sequence[str]) -> list[str]:
    """Take what a cluster has finished of this checkout's work, say how much that is, and return the other items.

    Raises:
        InputError: there are others, and this machine is of another kind than those that finished some.
    """
    folder = name_folder(storage, work)
    unfinished = list_unfinished(folder, work, items) if folder.is_dir() else [*items]
    finished = [item for item in items if item not in unfinished]
    say(f"{len(finished)} of {len(items)} {work.name}s are finished in {folder}")
    if finished and unfinished and (folder / RUNTIME).is_file():
        check_runtime(folder / RUNTIME, find_runtime())
    adopt(folder, work, finished)
    return unfinished


def _run_work(work: Work, items: Sequence[str], places: Sequence[Place], handle: int) -> None:
    environment = dvc_environment()
    jobs = [
        Job(
            f"{work.name} {item}",
            dvc_command("repro", "--single-item", *work.targets([item])),
            LOGS / f"{work.name}-{item}.log",
        )
        for item in items
    ]
    failed = run_side_by_side(jobs, [{**environment, **place} for place in places], f"{work.name}s", [handle])
    if failed:
        raise InputError("\n".join(_explain(job) for job in failed))


@contextmanager
def held_checkout() -> Iterator[int]:
    """Be the one run of this checkout, DVC's own files mended before, and its lock file in order afterwards.

    Yields a handle for the processes that it starts: a run that was killed lets go when the last of them has ended.

    Raises:
        InputError: another is at work here.
    """
    with hold(_HOLD, "another run is at work in this checkout; wait for it, or stop it", _GRACE_S) as handle:
        mend()
        try:
            yield handle
        finally:
            order_lock()


def repro(*targets: str, handle: int, is_quiet: bool = False) -> None:
    """Let DVC bring stages, and what they need, up to date: all of them where none is named.

    Args:
        targets: the stages.
        handle: that DVC inherits, of `held_checkout`.
        is_quiet: nothing is written to stdout.

    Raises:
        InputError: a stage failed.
    """
    if run_alone(Job("dvc repro", dvc_command("repro", *targets), None, is_quiet), dvc_environment(), [handle]):
        raise InputError(f"`{' '.join(('dvc repro', *targets))}` failed; its message is above")


def _explain(job: Job) -> str:
    """Return what a failed job said."""
    return f"{job.name} failed (the others went on); its log, {job.log}:\n{read_log(job.log) if job.log else ''}"
