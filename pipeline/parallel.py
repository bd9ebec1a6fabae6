"""Work spread over processes with bounded memory."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

import cv2

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING_PER_WORKER = 4  # results that may wait to be taken: enough that no worker idles


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) in the order of `items`, computed in `workers` processes.

    Only a few results per worker wait at a time, so memory does not grow with the number of items. With one worker
    everything runs in this process. `function` and the items must be picklable.
    """
    if workers == 1:
        yield from map(function, items)
        return
    rest = iter(items)
    # A fork of a process whose threads run (torch, OpenCV) can hang; forkserver starts from a clean one.
    context = multiprocessing.get_context("forkserver")
    # A process has a core: OpenCV's threads would only compete with the other processes.
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in itertools.islice(rest, _WAITING_PER_WORKER * workers):
                waiting.append(pool.submit(function, item))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
