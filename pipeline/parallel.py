"""Work spread over processes with bounded memory."""

import ctypes
import itertools
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from pipeline.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING_PER_WORKER = 4  # results that may wait to be taken: enough that no worker idles
_SIGNAL_WHEN_PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)


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
    # A fork of a process whose threads run (torch, OpenCV) can hang; forkserver starts from a clean one.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
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
                f"one of {workers} processes died, most likely where memory ran out; lower data.workers or "
                "decode.workers, and run the same command again"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _start_worker() -> None:
    # A process has a core: OpenCV's threads would only compete with the other processes.
    cv2.setNumThreads(1)
    # Ctrl-C reaches every process of a terminal; the one that started this one says what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker waits for work for ever where its owner was killed. The fork server notices, and ends its workers so.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_WHEN_PARENT_DIES, signal.SIGKILL)
