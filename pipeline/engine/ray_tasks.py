"""Jobs as tasks of a Ray cluster. In: commands that any of its machines can run. Out: those that failed, and why.

Ray places a task where there is room for it, and tells when its machine is gone. It is handed no data: what lasts lies
in files that all machines see.
"""

import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.jobs import last_line, read_log
from pipeline.errors import InputError, shorten
from pipeline.housekeeping import ClusterParams
from pipeline.launch import OWNER, catch_requests
from pipeline.progress import say

_LOOK_S = 1.0
_LINES_S = 30.0  # between two lines about a task
_MOST_TRIES = 3
_CONNECT_S = 10.0
_MISLEADING = ("TQDM_DISABLE", "PYTHONSAFEPATH")  # bars show that a task gets on, and its code is in the folder
_KILLED = 128  # as a shell counts it, a command that signal n ended has the status 128 + n


@dataclass(frozen=True)
class Task:
    """A command for a Python on any machine.

    Attributes:
        name: what lines are headed by.
        words: the arguments of Python.
        folder: in which it runs; all machines see it.
        log: the file that all its tries write to. It grows for as long as the task gets on.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    log: Path


@dataclass
class _Try:
    """A task that Ray has: what its log was when somebody last looked, and when it last grew."""

    task: Task
    size: int
    since: float
    has_begun: bool = False

    def look(self) -> None:
        size = _size(self.task.log)
        if size != self.size:
            self.size, self.since, self.has_begun = size, time.monotonic(), True


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Be a driver of the Ray cluster at `address`, None for that which this machine belongs to; yields the package.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    ray = _connect(address or "auto")
    try:
        yield ray
    finally:
        ray.shutdown()


def count_room(ray: Any, cluster: ClusterParams) -> int:
    """Return how many tasks the machines of the cluster hold at once where nothing else runs on them."""
    asked = {name: amount for name, amount in _ask_for(cluster).items() if amount}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        min((int(machine.get(name, 0) // amount) for name, amount in asked.items()), default=1) for machine in machines
    )


def _ask_for(cluster: ClusterParams) -> dict[str, float]:
    return {"CPU": cluster.cpus, "GPU": cluster.gpus, "memory": int(cluster.memory_gib * 2**30)}


def run_on_ray(ray: Any, tasks: Sequence[Task], cluster: ClusterParams) -> str:
    """Run all tasks, and return what those that failed said; nothing where none did.

    One that is lost with its machine, is killed, or writes nothing for `cluster.patience_s`, is started again, up to
    three times in all. One that ends in an error of its own is not.

    Raises:
        KeyboardInterrupt: this process was asked to stop; the tasks have been told to.
    """
    asked = _ask_for(cluster)
    options = {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"], "memory": asked["memory"], "max_retries": 0}
    remote = ray.remote(**options)(run_here)
    if tasks and not count_room(ray, cluster):
        say(f"no machine of the cluster has what a task asks for ({asked}); it waits for one, or lower `cluster`")
    waiting, tries = [*tasks], Counter[str]()
    failed: list[str] = []
    ready: dict[str, float] = {}
    running: dict[Any, _Try] = {}
    shown = time.monotonic()
    try:
        while waiting or running:
            for task in [task for task in waiting if ready.get(task.name, 0.0) <= time.monotonic()]:
                waiting.remove(task)
                if not tries[task.name]:
                    task.log.unlink(missing_ok=True)  # of an earlier run
                tries[task.name] += 1
                reference = remote.remote(task.words, str(task.folder), str(task.log))
                running[reference] = _Try(task, _size(task.log), time.monotonic())
            if not running:
                time.sleep(_LOOK_S)
                continue
            ended, _ = ray.wait([*running], timeout=_LOOK_S)
            for reference, one in [*running.items()]:
                one.look()
                is_stuck = one.has_begun and time.monotonic() - one.since > cluster.patience_s
                if reference in ended:
                    fault, is_lost = _judge(ray, reference)
                elif is_stuck:
                    ray.cancel(reference, force=True)
                    fault, is_lost = f"no step for {cluster.patience_s:.0f} s", True
                else:
                    continue
                del running[reference]
                say(f"{one.task.name}: {fault or 'done'}")
                if is_lost and tries[one.task.name] < _MOST_TRIES:
                    waiting.append(one.task)
                    ready[one.task.name] = time.monotonic() + cluster.rest_s
                elif fault:
                    often = f", the last of {_MOST_TRIES} tries" if is_lost else ""
                    failed.append(
                        f"{one.task.name}: {fault}{often}; its log, {one.task.log}:\n{read_log(one.task.log)}"
                    )
            if time.monotonic() - shown > _LINES_S:
                shown = time.monotonic()
                for one in running.values():
                    say(f"{one.task.name}: {last_line(one.task.log) if one.has_begun else 'waits for room'}")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return "\n".join(failed)


def _judge(ray: Any, reference: Any) -> tuple[str, bool]:
    """Return why a task that has ended failed, empty where it did not, and whether another try may do better."""
    try:
        status = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # of this very code, on the machine
        return shorten(error.cause or error), False
    except ray.exceptions.RayError as error:
        return shorten(error), True
    if status < 0 or status > _KILLED:
        return f"killed by signal {-status if status < 0 else status - _KILLED}, as where memory runs out", True
    return f"ended in {status}" if status else "", False


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray: Ray is not installed; `pip install -c constraints.txt -e '.[ray]'`") from error
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would ask for many minutes
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"--address {address}: cannot join a Ray cluster there ({shorten(error)}); run this on one of its "
            "machines, with its versions of Ray and Python, and the HOST:PORT that `ray start --address` took"
        ) from error
    catch_requests()  # Ray takes SIGTERM for itself
    return ray


def run_here(words: Sequence[str], folder: str, log: str) -> int:
    """Run a command on this machine, and return its status; minus the signal that killed it.

    It ends with this process.

    Raises:
        InputError: the folder is not there.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{platform.node()} does not see {folder}; name a folder that all machines see")
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("ab") as file:
        file.write(f"on {platform.node()}:\n".encode())
        file.flush()
        environment = {**os.environ, OWNER: str(os.getpid())}
        for name in _MISLEADING:
            environment.pop(name, None)
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )
        return process.wait()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
