"""Row 13: two folds side by side, each a process of one thread, against one after another.

A fold is represented by steps of train=cpu in a process of its own, without what it takes to start.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from pipeline.compose import compose_params
from pipeline.images.splits import PreparedSplit
from tests.benchmarks.harness import Report, Row, Setting, format_seconds
from tests.benchmarks.loops import our_steps

STEPS = 15
CASES = {"side by side": (2, 1), "one after another": (1, 1), "with two threads": (1, 2)}  # processes, threads


def run(setting: Setting) -> Report:
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    bytes_ = 0
    for _ in range(setting.runs):
        for case, (processes, threads) in CASES.items():
            found = [time_steps(setting.prepared, processes, threads) for _ in range(2 // processes)]
            seconds[case].append(sum(each[0] for each in found))
            bytes_ = max(bytes_, *(each[1] for each in found))
    ours, alone, threaded = (seconds[case] for case in CASES)
    rows = []
    for suffix, against, theirs, target in (
        ("a", "one after another, each of one thread", alone, "<= 0.6"),
        ("b", "one after another, each of two threads", threaded, "printed"),
    ):
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        rows.append(Row(
            f"13{suffix}", f"{STEPS} steps of two folds, processes of one thread side by side", against,
            f"{statistics.median(ratios):.2f} (ours over theirs, {min(ratios):.2f} .. {max(ratios):.2f})", target,
            format_seconds(statistics.median(ours)), format_seconds(statistics.median(theirs)),
            f"a process took up to {bytes_ / 2**30:.1f} GiB" if suffix == "a" else "",
        ))  # fmt: skip
    return Report(rows)


def time_steps(prepared: Path, processes: int, threads: int) -> tuple[float, int]:
    """Return the seconds that steps take in so many processes at once, of the slowest, and the most bytes of one."""
    command = [sys.executable, "-m", "tests.benchmarks.folds", str(prepared), str(threads)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as the launcher has it
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(processes)]
    found = [process.communicate()[0].split()[-2:] for process in started]
    return max(float(seconds) for seconds, _ in found), max(int(most) for _, most in found)


def main() -> None:
    import resource
    import time

    prepared, threads = Path(sys.argv[1]), sys.argv[2]
    params = compose_params(
        ["train=cpu", "runtime.device=cpu", "train.start_crop_px=192", f"runtime.threads={threads}"]
    )
    split = PreparedSplit.open(prepared / "train")
    our_steps(split, params, 3)()
    work = our_steps(split, params, STEPS)
    begin = time.perf_counter()
    work()
    print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
