"""Row 14: what Ray costs over processes of this machine: `predict` of ten shards by two of either."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

from tests.benchmarks.folds import started_cluster
from tests.benchmarks.harness import ROOT, Report, Row, Setting, format_seconds
from tests.faults.load import draw_nuclei, lay_out_run

FILES, SIDE_PX = 320, 512  # 32 files to a shard, in the mean


def run(setting: Setting) -> Report:
    first: dict[str, list[float]] = {"processes": [], "tasks of Ray": []}
    after: dict[str, list[float]] = {case: [] for case in first}
    with tempfile.TemporaryDirectory() as name, started_cluster() as address:
        home = Path(name).resolve()
        small = {"cluster__cpus": 1, "cluster__memory_gib": 0.1, "runtime__threads": 1}
        trained = lay_out_run(home / "run", 0, size__object_diameter_px=0.0, **small)
        (home / "images").mkdir()
        for number in range(FILES):
            cv2.imwrite(str(home / "images" / f"{number:03d}.png"), draw_nuclei(SIDE_PX, SIDE_PX, number))
        cases = {"processes": [], "tasks of Ray": ["--engine", "ray", "--address", address]}
        for number in range(setting.runs):
            for case, engine in cases.items():
                out = home / f"{case.split()[0]}{number}"
                start_s, rest_s = time_predict(home / "images", out, trained, engine)
                first[case].append(start_s)
                after[case].append(rest_s)
    waits = [ours - theirs for ours, theirs in zip(first["tasks of Ray"], first["processes"], strict=True)]
    ratios = [ours / theirs for ours, theirs in zip(after["tasks of Ray"], after["processes"], strict=True)]
    medians = {name: {case: format_seconds(statistics.median(each)) for case, each in times.items()}
               for name, times in (("first", first), ("after", after))}  # fmt: skip
    return Report([
        Row("14a", f"`predict` of {FILES} images until the first result, two tasks of Ray", "two processes",
            f"{statistics.median(waits):.1f} s later ({min(waits):.1f} .. {max(waits):.1f})", "<= 10 s",
            medians["first"]["tasks of Ray"], medians["first"]["processes"]),
        Row("14b", "the same, from the first result to the last", "two processes",
            f"{statistics.median(ratios):.2f} (ours over theirs, {min(ratios):.2f} .. {max(ratios):.2f})", "<= 1.05",
            medians["after"]["tasks of Ray"], medians["after"]["processes"]),
    ])  # fmt: skip


def time_predict(images: Path, out: Path, trained: Path, engine: list[str]) -> tuple[float, float]:
    """Return the seconds of a `predict` by two until its first result, and from then to the last."""
    words = ["-m", "pipeline", "predict", images, "--out", out, "--run", trained, "--jobs", 2, *engine]
    begin = time.time()
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, capture_output=True)
    written = [path.stat().st_mtime for path in out.glob("*.label_map.tif")]
    return min(written) - begin, max(written) - min(written)
