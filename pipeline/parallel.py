"""Work spread over processes with bounded memory."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import TypeVar

import cv2

from pipeline.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING_PER_WORKER = 4  # results that may wait to be taken: enough that no worker idles


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) in the order of `items`, computed in `workers` processes.

    Only a few results per worker wait at a time, so memory does not grow with the number of items. With one worker
    everything runs in this process. `function` and the items must be picklable.

    Raises:
        InputError: a process died, as one does that the system kills where memory runs out.
    """
    if workers == 1:
        yield from map(function, items)
        return
    rest = iter(items)
    # A fork of a process whose threads run (torch, OpenCV) can hang; forkserver starts from one without threads.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=start_worker) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in itertools.islice(rest, _WAITING_PER_WORKER * workers):
                waiting.append(pool.submit(function, item))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield result
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {workers} processes died, most likely where memory ran out; lower housekeeping.workers, and "
                "run the same command again"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def preload_workers(module: str, workers: int) -> None:
    """Let the process that workers are forked off import the module that they need, while this one does something else.

    Only the first call of a process counts, before its first workers: later ones find it running. The module, and what
    it imports, may start no thread: a fork of a process whose threads run can hang.
    """
    if workers > 1:
        forkserver.set_forkserver_preload(["__main__", module])  # the first is there by default
        forkserver.ensure_running()


def start_worker(_number: int = 0) -> None:
    """Make this process a worker: of one thread, and gone when the process that it works for is.

    A loader's worker is given its number. torch's own watch looks at the parent, which under forkserver is another.
    """
    # A process has a core: OpenCV's threads would only compete with the other processes.
    cv2.setNumThreads(1)
    # Ctrl-C reaches every process of a terminal; the one that started this one says what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_owner, daemon=True).start()


def _end_with_owner() -> None:
    """End this process with the one that it works for, however that ends: else it would wait for work for ever."""
    owner = multiprocessing.parent_process()
    if owner is not None:
        wait([owner.sentinel])
        os._exit(1)
