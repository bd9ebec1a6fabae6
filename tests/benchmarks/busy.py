"""Row 12: training, prediction and fitting beside an endless loop of plain Python.

Each runs in a process of its own, with threads that wait asleep, as the launcher has them, and once as OpenMP has them
by default, which takes minutes beside the loop. The cases take turns.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CASES = {"alone": (True, False), "beside it": (True, True), "default, alone": (False, False),
         "default, beside it": (False, True)}  # fmt: skip
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
    from pipeline.nuclei.selection import fit_model

    params = compose_params(["train=cpu"])
    rng = np.random.default_rng(0)
    features = rng.random((CANDIDATES, len(FEATURES)), dtype=np.float32)
    image, worth = np.arange(CANDIDATES) // 40, features[:, :3].mean(axis=1)
    return lambda: fit_model(features, worth, image, params.select) and None


WORKS = {"training": train, "prediction": predict, "fitting": fit}


def run(setting):  # type: ignore[no-untyped-def]
    from tests.benchmarks.harness import Report, Row, format_seconds

    rows = []
    for suffix, work in zip("abc", WORKS, strict=True):
        seconds: dict[str, list[float]] = {case: [] for case in CASES}
        for number in range(setting.runs):
            for case, (is_asleep, is_beside) in CASES.items():
                if number and not is_asleep:
                    continue
                seconds[case].append(time_work(work, setting.prepared, is_asleep, is_beside))
        median = {case: statistics.median(values) for case, values in seconds.items()}
        ratios = [busy / idle for busy, idle in zip(seconds["beside it"], seconds["alone"], strict=True)]
        rows.append(Row(
            f"12{suffix}", f"{work}, beside an endless loop", "the same, alone",
            f"{statistics.median(ratios):.2f} (ours over theirs, {min(ratios):.2f} .. {max(ratios):.2f})", "<= 2.5",
            format_seconds(median["beside it"]), format_seconds(median["alone"]),
            f"by OpenMP's default {format_seconds(median['default, alone'])} alone and "
            f"{format_seconds(median['default, beside it'])} beside the loop",
        ))  # fmt: skip
    return Report(rows)


def time_work(work: str, prepared: Path, is_asleep: bool, is_beside: bool) -> float:
    """Return the seconds that a work takes in a process of its own, after it was done once."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if is_beside else None
    try:
        command = [sys.executable, "-m", "tests.benchmarks.busy", work, str(prepared), *(["--asleep"] * is_asleep)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])
    finally:
        if loop:
            loop.kill()
            loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--asleep", action="store_true")
    arguments = parser.parse_args()
    if arguments.asleep:
        from pipeline.launch import settle_threads

        settle_threads()
    work = WORKS[arguments.work](arguments.prepared)
    work()
    begin = time.perf_counter()
    work()
    print(time.perf_counter() - begin)


if __name__ == "__main__":
    main()
