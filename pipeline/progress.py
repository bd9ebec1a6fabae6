"""Progress on stderr: a bar with the time left, for everything that can take longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int | None = None, unit: str = "image") -> Iterator[T]:
    """Yield `items` while a bar on stderr shows the share done and the time left.

    On a terminal the bar moves ten times a second; in a log it prints a line about every ten seconds.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0
    if total is None and isinstance(items, Sized):
        total = len(items)
    iterator = iter(items)
    with tqdm(
        desc=title, total=total, unit=unit, mininterval=interval, maxinterval=interval, dynamic_ncols=True
    ) as bar:
        while True:
            try:
                yield next(iterator)  # no name holds the item, which may be large, while the caller works on it
            except StopIteration:
                return
            bar.update()
