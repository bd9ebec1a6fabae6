"""Volume: tens of thousands of small images, and a test set of stage 2's size, pass in level memory and bounded time.

In: counts and a seed. Out: a line of figures each; an `AssertionError` where memory grows, or a kill changes a result.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray

from pipeline.compose import write_composed
from pipeline.predict.paths import MANIFEST, MARKERS, TABLE
from tests.faults.kills import await_orphans
from tests.faults.load import ROOT, draw_nuclei, lay_out_run
from tests.faults.workspace import make_workspace

_SIDE_PX = 64
_LEVEL = 1.1, 30e6  # memory may grow by this factor and these bytes
# Frames of stage 1, and how many of 3,019 images have each; those of stage 2 are of the same microscopes, and others.
_FRAMES = {(256, 256): 1400, (256, 320): 500, (520, 696): 350, (360, 360): 300, (512, 640): 250, (519, 253): 60,
           (512, 680): 60, (390, 239): 40, (1024, 1024): 40, (1040, 1388): 19}  # fmt: skip
_TRAINED, _TRAIN_PX, _BRIGHT = 24, 128, 100
_STAINED = 4  # one image in so many is stained, purple on white


class Watch:
    """Follows the memory of a process and of all that it has started, until `stop`.

    Attributes:
        samples: by process, seconds since the begin and bytes that are no pages of a file.
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.samples: dict[int, list[tuple[float, int]]] = defaultdict(list)
        self._begin, self._process, self._is_on = time.monotonic(), psutil.Process(process.pid), True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._is_on:
            with suppress(psutil.Error):
                for one in [self._process, *self._process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        used = one.memory_info()
                        self.samples[one.pid].append((time.monotonic() - self._begin, used.rss - used.shared))
            time.sleep(0.2)

    def stop(self) -> float:
        """Stop, and return the seconds since the begin."""
        self._is_on = False
        self._thread.join()
        return time.monotonic() - self._begin

    def most_of_one(self, until_s: float = np.inf) -> int:
        """Return the most bytes that one process had at once."""
        return max(used for samples in self.samples.values() for at, used in samples if at <= until_s)


def check_images(count: int, seed: int) -> str:
    """Predict so many images by two processes, killed on the way, and by one that is left alone; compare the tables."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        once = {"predict__scales": (1.0,), "predict__views": "identity", "size__object_diameter_px": 0.0}
        run = lay_out_run(home / "run", seed, runtime__threads=1, **once)
        _write_images(home / "images", count, seed)
        begin = time.monotonic()
        alone = _start(home, run, "alone", 1)
        assert alone.wait() == 0, _tail(home)
        alone_s = time.monotonic() - begin

        begin = time.monotonic()
        killed = _start(home, run, "out", 2)
        while _count_done(home / "out") < count / 32 / 2 and killed.poll() is None:
            time.sleep(0.1)
        assert killed.poll() is None, _tail(home)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        await_orphans(killed.pid)
        until_kill_s, before = time.monotonic() - begin, _count_done(home / "out")
        begin = time.monotonic()
        resumed = _start(home, run, "out", 2)
        watch = Watch(resumed)
        code = resumed.wait()
        watch.stop()
        assert code == 0, _tail(home)
        rest_s = time.monotonic() - begin

        idle = _start(home, run, "out", 2)
        looking = Watch(idle)
        code = idle.wait()
        idle_s, idle_bytes = looking.stop(), looking.most_of_one()
        assert code == 0, _tail(home)
        assert f"{count} of {count} files were done before" in (home / "log.txt").read_text(), _tail(home)

        tables = [(home / out / TABLE).read_bytes() for out in ("alone", "out")]
        assert tables[0] == tables[1]
        manifest = pd.read_csv(home / "out" / MANIFEST)
        assert (len(manifest), {*manifest["status"]}) == (count, {"done"})
        assert manifest["nuclei"].sum() > count / 4, manifest["nuclei"].sum()
        read, (written, files) = _measure_folder(home / "images")[0], _measure_folder(home / "alone")
        shards = _count_done(home / "alone")
    early, late = watch.most_of_one(rest_s / 4), watch.most_of_one()
    assert late <= _LEVEL[0] * early + _LEVEL[1], f"{late / 2**20:.0f} MiB, {early / 2**20:.0f} in the first quarter"
    return (
        f"{count} images of {_SIDE_PX} px, two processes: killed after {before} shards and {until_kill_s:.0f} s, the "
        f"rest in {rest_s:.0f} s, to the table of one process; a process took {late / 2**20:.0f} MiB at its most, "
        f"{early / 2**20:.0f} in its first quarter; one process took {alone_s:.0f} s for "
        f"{read / 2**20:.0f} MiB, and wrote {written / 2**20:.0f} MiB in {files} files, {shards} shards; with "
        f"nothing to do it took {idle_s:.0f} s and {idle_bytes / 2**20:.0f} MiB"
    )


def _write_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:06d}.png"), draw_nuclei(_SIDE_PX, _SIDE_PX, seed + number))


def _measure_folder(folder: Path) -> tuple[int, int]:
    """Return the bytes and the number of the files in a folder and below."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def _start(home: Path, run: Path, out: str, jobs: int) -> "subprocess.Popen[bytes]":
    words = ["-m", "pipeline", "predict", home / "images", "--out", home / out, "--run", run, "--jobs", jobs]
    with (home / "log.txt").open("wb") as log:
        return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=log, stderr=log)


def _tail(home: Path) -> str:
    return (home / "log.txt").read_text(errors="replace")[-2000:]


def _count_done(out: Path) -> int:
    return sum(1 for path in (out / MARKERS).glob("*.json") if not path.name.endswith(".runtime.json"))


def check_stage2(count: int, seed: int) -> str:
    """Run the pipeline by `data=stage2` on a made-up test set of so many images, and return its time and memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = make_workspace(Path(name).resolve())
        _write_trainset(folder / "data" / "sample" / "stage1_train.zip", seed)
        megapixels = _write_testset(folder / "data" / "sample" / "stage2_test_final.zip", count, seed)
        small = ["unet=vanilla", "unet.depth=3", "unet.width=4", "unet.upsampling=nearest", "predict.views=flips"]
        short = ["train.epochs=6", "train.steps_per_epoch=20", "train.batch=4", "train.tile_px=80", "train.crop_px=64"]
        short += ["train.start_crop_px=32", "folds.ids=[0,1]", "runtime.device=cpu", "runtime.threads=1"]
        few = ["select.trees=20", "evaluate.bootstrap=100"]
        write_composed(folder / "params.yaml", ["data=stage2", "data.dir=data/sample", *small, *short, *few])
        with (folder / "log.txt").open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "run"], cwd=folder, stdout=log, stderr=log, env=environment
            )
        watch = Watch(process)
        code = process.wait()
        seconds = watch.stop()
        assert code == 0, (folder / "log.txt").read_text(errors="replace")[-3000:]
        command = [sys.executable, "-m", "pipeline", "check", "submissions/submission.csv"]
        command += ["--images", "data/sample/stage2_test_final.zip"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        submission = pd.read_csv(folder / "submissions" / "submission.csv")
        assert submission["ImageId"].nunique() == count
    return (
        f"{count} images, {megapixels:.0f} Mpx: `pipeline run` with data=stage2 took {seconds:.0f} s in all, a process "
        f"{watch.most_of_one() / 2**20:.0f} MiB at its most; {len(submission)} nuclei, a valid submission"
    )


def _write_trainset(path: Path, seed: int) -> None:
    """Write an archive of made-up training images, with a mask for each nucleus, from which a network learns fast."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(_TRAINED):
            image = draw_nuclei(_TRAIN_PX, _TRAIN_PX, seed + number)
            masks = cv2.connectedComponents((image[..., 0] > _BRIGHT).astype(np.uint8))
            shown = _stain(image) if number % _STAINED == 0 else image
            image_id = f"{number:064x}"
            archive.writestr(f"{image_id}/images/{image_id}.png", cv2.imencode(".png", shown)[1].tobytes())
            for label in range(1, masks[0]):
                mask = 255 * (masks[1] == label).astype(np.uint8)
                archive.writestr(f"{image_id}/masks/{label:064x}.png", cv2.imencode(".png", mask)[1].tobytes())


def _write_testset(path: Path, count: int, seed: int) -> float:
    """Write an archive of made-up images as the competition lays it out, and return its megapixels."""
    rng = np.random.default_rng(seed)
    shapes, weights = [*_FRAMES], np.array([*_FRAMES.values()], float)
    drawn: dict[tuple[tuple[int, int], bool], bytes] = {}
    pixels = 0
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            kind = shapes[rng.choice(len(shapes), p=weights / weights.sum())], number % _STAINED == 0
            if kind not in drawn:
                image = draw_nuclei(*kind[0], seed + number)
                drawn[kind] = cv2.imencode(".png", _stain(image) if kind[1] else image)[1].tobytes()
            pixels += kind[0][0] * kind[0][1]
            image_id = f"{number:064x}"
            archive.writestr(f"{image_id}/images/{image_id}.png", drawn[kind])
    return pixels / 1e6


def _stain(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a dark image as a stained one, BGR: white, its nuclei purple."""
    stain = np.array([0.35, 0.8, 0.6])
    return np.clip(245 - image * stain, 0, 255).astype(np.uint8)
