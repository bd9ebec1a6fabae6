"""Commands side by side, each a process of its own with a log, and a line for each that runs.

In: commands by name. Out: their logs, and those that failed. A command that fails stops no other. When this process is
asked to stop, all of them are, as Ctrl-C does it, and are waited for: a stage saves its state.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import shorten

_LOOK_S = 0.2
_LINES_S = 30.0  # between two lines about a job where stderr is no terminal
_GRACE_S = 120.0  # in which a job that was asked to stop saves its state
_TAIL_BYTES = 4096


@dataclass
class Job:
    """A command.

    Attributes:
        name: what lines are headed by.
        command: the program and its arguments.
        log: the file that it writes to, written anew; None for where this process does.
        is_quiet: without a log, it writes all to stderr: stdout is for what this process has to say.
        process: once it was started.
    """

    name: str
    command: Sequence[str]
    log: Path | None
    is_quiet: bool = False
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, environment: Mapping[str, str], handles: Sequence[int] = ()) -> None:
        """Start the command in a session of its own: only `send` reaches it.

        Args:
            environment: what changes in it.
            handles: of open files, which the command inherits.
        """
        with _open_log(self.log) as log:
            self.process = subprocess.Popen(
                [*self.command],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if self.is_quiet else log,
                stderr=subprocess.STDOUT if log else None,
                env={**os.environ, **environment},
                start_new_session=True,
                pass_fds=handles,
            )

    @property
    def status(self) -> int | None:
        """The exit status; None while the command runs, and before it does."""
        return None if self.process is None else self.process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command and all that it has started."""
        if self.process is not None and self.status is None:
            with suppress(ProcessLookupError):  # it may have just ended
                os.killpg(self.process.pid, number)

    def last_line(self) -> str:
        """Return what the command said last; nothing where it has no log."""
        return last_line(self.log) if self.log else ""


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty: of a bar, as it stands now; nothing where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        return ""
    return next((shorten(line) for line in reversed(lines) if line.strip()), "")


def read_log(log: Path) -> str:
    """Return what a command said: of a bar, as it stood last."""
    if not log.is_file():
        return ""
    lines = log.read_bytes().decode(errors="replace").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines).strip()


@contextmanager
def _open_log(path: Path | None) -> Iterator[Any]:
    if path is None:
        yield None
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as log:
            yield log


def run_alone(job: Job, environment: Mapping[str, str], handles: Sequence[int] = ()) -> int:
    """Run one job, and return its exit status; minus the signal that killed it. Arguments as of `Job.start`.

    Raises:
        KeyboardInterrupt: this process was asked to stop; the job has stopped.
    """
    try:
        job.start(environment, handles)
        while (status := job.status) is None:
            time.sleep(_LOOK_S)
    finally:
        _stop([job])
    return status


def run_side_by_side(
    jobs: Sequence[Job], places: Sequence[Mapping[str, str]], title: str, handles: Sequence[int] = ()
) -> list[Job]:
    """Run all jobs, as many at a time as there are places, and return those that failed.

    Args:
        jobs: started in this order; each has a log.
        places: what each place changes in the environment of the job that has it.
        title: of the line that counts jobs.
        handles: of open files, which the jobs inherit.

    Raises:
        KeyboardInterrupt: this process was asked to stop; the jobs have stopped.
    """
    waiting, failed = deque(jobs), []
    running: dict[int, Job] = {}
    with _Lines(title, len(jobs), len(places)) as lines:
        try:
            while waiting or running:
                for number, environment in enumerate(places):
                    if number not in running and waiting:
                        running[number] = waiting.popleft()
                        running[number].start(environment, handles)
                time.sleep(_LOOK_S)
                for number, job in [*running.items()]:
                    if job.status is not None:
                        failed += [job] if job.status else []
                        lines.end(number, job)
                        del running[number]
                lines.show(running)
        finally:
            _stop([*running.values()])
    return failed


def _stop(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.send(signal.SIGINT)
    end = time.monotonic() + _GRACE_S
    while any(job.process and job.status is None for job in jobs) and time.monotonic() < end:
        time.sleep(_LOOK_S)
    for job in jobs:
        job.send(signal.SIGKILL)


class _Lines:
    """A line for each place and one for the whole: on a terminal they stand still, in a log they come now and then."""

    def __init__(self, title: str, total: int, places: int) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = time.monotonic()
        self._places: list[Any] = []
        self._whole = tqdm(total=total, desc=title, unit="job", dynamic_ncols=True, disable=not self._is_terminal)
        if self._is_terminal:
            self._places = [tqdm(bar_format="{desc}", position=1 + n, leave=False) for n in range(places)]

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        for bar in (*self._places, self._whole):
            bar.close()

    def show(self, running: Mapping[int, Job]) -> None:
        """Show what the jobs at their places said last."""
        if self._is_terminal:
            for number, job in running.items():
                self._places[number].set_description_str(f"{job.name}: {job.last_line()}")
        elif time.monotonic() - self._shown > _LINES_S:
            self._shown = time.monotonic()
            for job in running.values():
                print(f"{job.name}: {job.last_line()}", file=sys.stderr, flush=True)

    def end(self, number: int, job: Job) -> None:
        """Count a job that has ended."""
        if self._is_terminal:
            self._places[number].set_description_str("")
        tqdm.write(f"{job.name}: {'failed' if job.status else 'done'}", file=sys.stderr)
        self._whole.update()
