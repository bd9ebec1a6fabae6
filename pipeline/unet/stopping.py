"""Requests to stop, by SIGTERM, Ctrl-C or a closed terminal, turned into a question to be asked between steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watch_for_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the process was asked to stop; nohup's SIGHUP stays ignored."""
    received: list[int] = []
    old = {
        number: signal.signal(number, lambda n, _: received.append(n))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
