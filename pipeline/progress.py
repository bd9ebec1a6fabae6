"""Progress on stderr: a bar with the time left, for everything that can take longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")

# As tqdm's own, but for the count: of an image that is half done, a half is not shown.
_FORMAT = "{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class Bar:
    """A bar on stderr. Call it with an amount that is done."""

    def __init__(self, bar: "tqdm[NoReturn]") -> None:
        self._bar = bar

    def __call__(self, amount: float) -> None:
        self._bar.update(amount)

    def expect(self, more: float) -> None:
        """Say that there is more to do than was thought."""
        self._bar.total += more


@contextmanager
def progress_bar(title: str, total: float | None, unit: str = "image") -> "Iterator[Bar]":
    """Show a bar on stderr, and yield it; amounts that are done may be parts of a unit.

    On a terminal the bar moves ten times a second; in a log it prints a line about every ten seconds.
    """
    with _open_bar(title, total, unit) as bar:
        yield Bar(bar)


def track(items: Iterable[T], title: str, total: int | None = None, unit: str = "image") -> Iterator[T]:
    """Yield `items` while a bar on stderr shows the share done and the time left; an item is done when the next is due.

    What passes before the first item comes, as processes start and import, says nothing about the others: the time left
    is reckoned from then on.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    iterator = iter(items)
    with _open_bar(title, total, unit) as bar:

        def take() -> T:
            item = next(iterator)
            if bar.n == 0:
                bar.unpause()
            return item

        while True:
            try:
                yield take()  # no name holds the item, which may be large, while the caller works on it
            except StopIteration:
                return
            bar.update()


def say(line: str) -> None:
    """Print a line on stderr, above a bar that is shown there."""
    tqdm.write(line, file=sys.stderr)


def _open_bar(title: str, total: float | None, unit: str) -> "tqdm[NoReturn]":
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        desc=title,
        total=total,
        unit=unit,
        bar_format=_FORMAT if total else None,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=True,
    )
