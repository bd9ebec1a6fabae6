"""Two ways to do the same work, timed side by side in one process.

Timings on shared machines drift, so only ratios are reported: the two sides alternate, and a row gives the median of
the ratios of neighbouring runs with its range, the seconds of both sides, and the machine with its load. Nothing in
the tests asserts a time.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.images.splits import NamedImage, PreparedSplit

ROOT = Path(__file__).resolve().parents[2]

Work = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """What the benchmarks run on."""

    archives: Path  # the folder with stage1_train.zip
    prepared: Path  # what `prepare` makes of it, with `train` and `test` below; see `__main__`
    runs: int = 5  # of each side
    scratch: Path = Path(".resume/bench")  # for files that a benchmark writes

    @property
    def split(self) -> PreparedSplit:
        """The prepared training images."""
        return PreparedSplit.open(self.prepared / "train")


@dataclass(frozen=True)
class Timing:
    """Two sides, timed in turns: `ours` and `theirs` in s, and theirs / ours of each pair of neighbours."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Row:
    """A line of the table of ratios."""

    number: str  # of the row, such as "3"
    what: str
    against: str
    value: str  # what was reached, such as "4.7x (4.5 .. 5.0)"
    target: str
    ours: str = ""
    theirs: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table that is no ratio: a profile, or cost as work grows."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What one benchmark module found, and where and when."""

    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_pair(ours: Work, theirs: Work, runs: int, warmups: int = 1) -> Timing:
    """Time two functions of no arguments in turns, after `warmups` untimed turns."""
    for _ in range(warmups):
        ours(), theirs()
    pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(runs)]
    return Timing([ours for ours, _ in pairs], [theirs for _, theirs in pairs])


def seconds_of(work: Work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def compare_row(number: str, what: str, against: str, target: str, timing: Timing, note: str = "") -> Row:
    """Return the row of a timing."""
    low, high = min(timing.ratios), max(timing.ratios)
    return Row(
        number,
        what,
        against,
        f"{timing.ratio:.3g}x ({low:.3g} .. {high:.3g})",
        target,
        format_seconds(statistics.median(timing.ours)),
        format_seconds(statistics.median(timing.theirs)),
        note,
    )


def format_seconds(seconds: float) -> str:
    """Return seconds with three figures in a fitting unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def draw_images(split: PreparedSplit, count: int) -> list[NamedImage]:
    """Return a seeded draw of `count` images of a split."""
    names = split.table["image_id"].sample(frac=1.0, random_state=0).tolist()[:count]
    return [(name, split.image(name)) for name in names]


def count_megapixels(images: Iterable[NamedImage]) -> float:
    """Return how many millions of pixels the images have together."""
    return sum(image.shape[0] * image.shape[1] for _, image in images) / 1e6


def describe_machine() -> str:
    """Return processor, cores, load and versions in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = os.getloadavg()[0]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "opencv-python-headless"))
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{when}; {model}, {os.cpu_count()} cores, load {load:.1f} at the end; {packages}"
