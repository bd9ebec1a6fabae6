"""Row 12: training, prediction and fitting beside an endless loop of plain Python.

Each runs in a process of its own, with threads that wait for one another as the launcher has it, as OpenMP does by
default, and asleep at once (`OMP_WAIT_POLICY=PASSIVE`). The cases take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WAITS: dict[str, dict[str, str] | None] = {"ours": None, "default": {}, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
TRAINED, IMAGES, CANDIDATES = 6, 12, 20_000


def train(prepared: Path) -> Callable[[], None]:
    """Return steps of train=cpu."""
    from pipeline.compose import compose_params
    from pipeline.images.splits import PreparedSplit
    from tests.benchmarks.loops import our_steps

    params = compose_params(["train=cpu", "runtime.device=cpu"])
    return our_steps(PreparedSplit.open(prepared / "train"), params, TRAINED)


def predict(prepared: Path) -> Callable[[], None]:
    """Return the prediction of some images by one network."""
    from pipeline.compose import compose_params
    from pipeline.folds.prediction import predict_at
    from pipeline.images.splits import PreparedSplit
    from pipeline.unet.model import build_model
    from pipeline.unet.runtime import start_runtime
    from tests.benchmarks.harness import draw_images

    params = compose_params(["train=cpu", "runtime.device=cpu"])
    images, runtime = draw_images(PreparedSplit.open(prepared / "train"), IMAGES), start_runtime(params.runtime)
    model = build_model(params.unet).eval()

    def work() -> None:
        for _ in predict_at([model], images, lambda *_: 1.0, params.contrast, params.predict, runtime):
            pass

    return work


def fit(_: Path) -> Callable[[], None]:
    """Return the fit of the second level's trees to as many candidates as stage1_train has, made up."""
    import numpy as np

    from pipeline.compose import compose_params
    from pipeline.nuclei.candidates import FEATURES
    from pipeline.nuclei.fitting import fit_trees

    params = compose_params(["train=cpu"])
    rng = np.random.default_rng(0)
    features = rng.random((CANDIDATES, len(FEATURES)), dtype=np.float32)
    image, worth = np.arange(CANDIDATES) // 40, features[:, :3].mean(axis=1)
    return lambda: fit_trees(features, worth, image, params.select) and None


WORKS = {"training": train, "prediction": predict, "fitting": fit}


def run(setting):  # type: ignore[no-untyped-def]
    from tests.benchmarks.harness import Report, Row, format_seconds

    rows = []
    for suffix, work in zip("abc", WORKS, strict=True):
        alone: dict[str, list[float]] = {wait: [] for wait in WAITS}
        beside: dict[str, list[float]] = {wait: [] for wait in WAITS}
        for _ in range(setting.runs):
            for wait, variables in WAITS.items():
                alone[wait].append(time_work(work, setting.prepared, variables))
                with endless_loop():
                    beside[wait].append(time_work(work, setting.prepared, variables))
        ratios = [busy / idle for busy, idle in zip(beside["ours"], alone["ours"], strict=True)]
        times = {wait: (format_seconds(statistics.median(alone[wait])), format_seconds(statistics.median(beside[wait])))
                 for wait in WAITS}  # fmt: skip
        rows.append(Row(
            f"12{suffix}", f"{work}, beside an endless loop", "the same, alone",
            f"{statistics.median(ratios):.2f} (ours over theirs, {min(ratios):.2f} .. {max(ratios):.2f})", "<= 2.5",
            times["ours"][1], times["ours"][0],
            f"by OpenMP's default {times['default'][0]} alone and {times['default'][1]} beside the loop, asleep at "
            f"once {times['asleep'][0]} and {times['asleep'][1]}",
        ))  # fmt: skip
    return Report(rows)


@contextmanager
def endless_loop() -> Iterator[None]:
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def time_work(work: str, prepared: Path, variables: dict[str, str] | None) -> float:
    """Return the seconds that a work takes in a process of its own, after it was done once.

    Args:
        work: of WORKS.
        prepared: the folder of prepared data.
        variables: of the environment, that say how threads wait; None for what the launcher sets.
    """
    command = [sys.executable, "-m", "tests.benchmarks.busy", work, str(prepared)]
    command += ["--settled"] if variables is None else []
    free = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=free | (variables or {}))
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--settled", action="store_true")
    arguments = parser.parse_args()
    if arguments.settled:
        from pipeline.launch import settle_threads

        settle_threads()
    work = WORKS[arguments.work](arguments.prepared)
    work()
    begin = time.perf_counter()
    work()
    print(time.perf_counter() - begin)


if __name__ == "__main__":
    main()
