"""Cost as work grows: stages over more and more images, and `predict` on larger and larger ones.

The set is 65 images of stage1_train, repeated under new names. Each figure is of a process of its own, as DVC or a
user starts it; what the same command takes for six images (`predict`: for one of 64 px) is its start, and is taken
off. The start, and the smallest work, which takes little longer, are medians of some runs. Memory is what the processes
hold for themselves (RssAnon, children included): mapped files are the system's to drop. Needs Linux and the trained run
of `make repro`.
"""

import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import yaml

from pipeline.folds.predictions import write_predictions
from pipeline.folds.table import read_folds
from pipeline.images.archive import index_archive, open_archive
from pipeline.images.splits import PreparedSplit
from pipeline.images.table import read_table
from pipeline.params import Params, load_params
from pipeline.unet.predict import Prediction
from tests.benchmarks.decoding import make_probabilities
from tests.benchmarks.harness import ROOT, Report, Setting, Table

RUNS = 5
COUNTS = (6, 65, 650, 6_500)  # the first is the start
MOST_PREDICTED = 650  # of these: ten times as many images would take a quarter of an hour, one after another as before
SIDES_PX = (64, 1_000, 4_000, 12_000)  # so here
SAMPLE_S = 0.05  # between looks at the memory


def measure(*arguments: object, runs: int = 1) -> tuple[float, float]:
    """Run Python with the arguments; return its seconds and the most memory of it and its children, in MiB: medians.

    Before several runs is one that does not count: it reads files from the disk.
    """
    found = [_measure_once(*arguments) for _ in range(runs if runs == 1 else runs + 1)]
    seconds, peaks = zip(*found[-runs:], strict=True)
    return statistics.median(seconds), statistics.median(peaks)


def _measure_once(*arguments: object) -> tuple[float, float]:
    """Return the seconds and MiB of one run."""
    begin, peak = time.perf_counter(), 0.0
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, _held_mib(process.pid))
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - begin
        if process.returncode:
            assert process.stderr is not None
            raise RuntimeError(f"{' '.join(command)}: {process.stderr.read().decode()[-2000:]}")
    return seconds, peak


def _held_mib(pid: int) -> float:
    """Return the anonymous memory of a process and its children; of one that has just ended, nothing."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")]
    return sum(own) + sum(_held_mib(int(child)) for child in children)


def choose_params(path: Path, folds: tuple[int, ...]) -> Params:
    """Write the parameters of the trained run with one view and few decodings, so that 6,500 images take minutes."""
    params = load_params(ROOT / "params.yaml")
    content = params.model_dump(mode="json")
    content["folds"]["ids"] = list(folds)
    content["predict"] |= {"views": "identity", "scales": [1.0]}
    content["decode"] |= {"seed_threshold": [0.6, 0.7], "boundary_weight": [1.0], "mask_threshold": [0.5, 0.6]}
    path.write_text(yaml.safe_dump(content))
    return load_params(path)


def write_archives(source: Path, folder: Path, count: int, params: Params) -> None:
    """Write a training archive of `count` images, 65 of the source's over and over, and a test archive of one."""
    folder.mkdir(parents=True)
    with open_archive(source) as archive:
        entries = index_archive(archive, labelled=True, allow_unlabelled=False)
        chosen = [entries[number] for number in np.random.default_rng(0).permutation(len(entries))[: min(count, 65)]]
        (trained,), test = params.data.sources.values(), params.data.test
        assert test is not None
        with zipfile.ZipFile(folder / trained.archive, "w") as target:
            for number in range(count):
                entry = chosen[number % len(chosen)]
                for name in (entry.image_entry, *entry.mask_entries):
                    renamed = name.replace(entry.image_id, f"{number:04d}{entry.image_id[4:]}")
                    target.writestr(renamed, archive.read(name))
        with zipfile.ZipFile(folder / test.archive, "w") as target:
            target.writestr(chosen[0].image_entry, archive.read(chosen[0].image_entry))


def make_predictions(prepared: Path, folds: Path, out: Path) -> None:
    """Write out-of-fold predictions made of the label maps, with faults as networks have them."""
    split, table = PreparedSplit.open(prepared), read_folds(folds)
    made: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)

    def predict(image_id: str) -> Prediction:
        original = image_id[4:]
        if original not in made:
            made[original] = make_probabilities(split.label_map(image_id), rng)
        return Prediction(image_id, made[original][None], 1.0)

    for fold, image_ids in table.groupby("fold")["image_id"]:
        write_predictions(out / "main" / f"{fold}.npz", map(predict, image_ids))


def measure_stages(setting: Setting, scratch: Path, count: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """Return the megapixels of `count` images, and seconds and MiB of each stage."""
    at, runs = scratch / str(count), RUNS if count in COUNTS[:2] else 1
    two_folds, all_folds = scratch / "two_folds.yaml", scratch / "all_folds.yaml"
    choose_params(two_folds, (0, 1))
    params = choose_params(all_folds, (0, 1, 2))
    write_archives(setting.archives / "stage1_train.zip", at / "archives", count, params)
    prepared, folds, oof = at / "train", at / "folds", at / "oof"
    files = {
        name: at / name
        for name in (
            "scores.csv",
            "cv.json",
            "decoding.json",
            "candidates.npz",
            "trees.npz",
            "oof.csv",
            "signals.csv",
            "probabilities.npz",
        )
    }
    found = {}
    inputs = ["--archives", at / "archives", "--train-out", prepared, "--test-out", at / "test"]
    found["prepare"] = measure("-m", "pipeline.stages", "prepare", *inputs, "--params", all_folds, runs=runs)
    megapixels = float(read_table(prepared).eval("height * width").sum()) / 1e6
    inputs = ["--prepared", prepared, "--out", folds]
    found["folds"] = measure("-m", "pipeline.stages", "folds", *inputs, "--params", all_folds, runs=runs)
    if count <= MOST_PREDICTED:
        inputs = ["--prepared", prepared, "--weights", ROOT / "folds" / "weights" / "main"]
        inputs += ["--sizes", ROOT / "folds" / "sizes" / "main", "--share", "0", "--out", files["probabilities.npz"]]
        found["predict_testset"] = measure(
            "-m", "pipeline.stages", "predict_testset", *inputs, "--params", two_folds, runs=runs
        )
    make_predictions(prepared, folds / "folds.csv", oof)
    inputs = ["--prepared", prepared, "--folds", folds / "folds.csv", "--oof", oof]
    inputs += ["--unseen", ROOT / "folds" / "unseen.csv", "--scores", files["scores.csv"]]
    inputs += ["--summary", files["cv.json"], "--decoding", files["decoding.json"]]
    inputs += ["--candidates", files["candidates.npz"], "--trees", files["trees.npz"]]
    inputs += ["--nuclei", files["oof.csv"], "--signals", files["signals.csv"]]
    found["evaluate"] = measure("-m", "pipeline.stages", "evaluate", *inputs, "--params", all_folds, runs=runs)
    shutil.rmtree(at)
    return megapixels, found


def write_mosaic(path: Path, prepared: Path, side_px: int) -> None:
    """Write a PNG of `side_px` x `side_px` of images of 256 x 256 side by side."""
    split = PreparedSplit.open(prepared)
    chosen = [name for name, shape in split.shapes().items() if shape == (256, 256)][:100]
    across = -(-side_px // 256)
    rng = np.random.default_rng(0)
    rows = [np.hstack([split.image(chosen[k]) for k in rng.integers(len(chosen), size=across)]) for _ in range(across)]
    cv2.imwrite(str(path), np.vstack(rows)[:side_px, :side_px, ::-1])


def measure_images(setting: Setting, scratch: Path) -> list[tuple[float, float, float]]:
    """Return megapixels, seconds and MiB of `predict` for each side."""
    trained = scratch / "run"
    (trained / "folds").mkdir(parents=True)
    choose_params(trained / "params.yaml", (0, 1))
    for name in ("weights", "sizes", "decoding.json", "trees.npz"):
        (trained / "folds" / name).symlink_to(ROOT / "folds" / name)
    found = []
    for side_px in SIDES_PX:
        path, out = scratch / "mosaic.png", scratch / "nuclei"
        write_mosaic(path, setting.prepared / "train", side_px)
        words = ["-m", "pipeline", "predict", path, "--out", out, "--run", trained, "--no-resume"]
        found.append((side_px**2 / 1e6, *measure(*words, runs=RUNS if side_px in SIDES_PX[:2] else 1)))
        shutil.rmtree(out)
    return found


def tabulate(name: str, sizes: list[str], found: list[tuple[float, float, float]]) -> list[list[str]]:
    """Return the rows of one stage; `found` begins with its start."""
    (start_mpx, start_s, _), *grown = found
    each = [(seconds - start_s) / (megapixels - start_mpx) for megapixels, seconds, _ in grown]
    return [
        [name, size, f"{megapixels:.0f}", f"{seconds:.1f}", f"{1e3 * own:.3g}", f"{own / each[0]:.2f}", f"{mib:.0f}"]
        for size, (megapixels, seconds, mib), own in zip(sizes, grown, each, strict=True)
    ]


def run(setting: Setting) -> Report:
    scratch = (setting.scratch / "scaling").resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    measured = [measure_stages(setting, scratch, count) for count in COUNTS]
    rows = []
    for stage in measured[0][1]:
        found = [(megapixels, *stages[stage]) for megapixels, stages in measured if stage in stages]
        rows += tabulate(stage, [f"{count} images" for count in COUNTS[1 : len(found)]], found)
    images = measure_images(setting, scratch)
    rows += tabulate("predict", [f"1 image, {side} px" for side in SIDES_PX[1:]], images)
    shutil.rmtree(scratch)
    header = ["command", "work", "Mpx", "s", "ms per Mpx, start off", "to the first", "peak MiB"]
    note = (
        f"Starts: {', '.join(f'{name} {seconds:.1f} s' for name, (seconds, _) in measured[0][1].items())}, predict "
        f"{images[0][1]:.1f} s. Two networks, one view, four decodings to search."
    )
    return Report(tables=[Table("Cost as work grows", header, rows, note)])
