"""Progress on stderr: a bar with the time left, for everything that can take longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int | None = None, unit: str = "image") -> Iterator[T]:
    """Yield `items` while a bar on stderr shows the share done and the time left.

    On a terminal the bar moves ten times a second; in a log it prints a line about every ten seconds.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0
    yield from tqdm(
        items, desc=title, total=total, unit=unit, mininterval=interval, maxinterval=interval, dynamic_ncols=True
    )
