"""Load: one image of hundreds of megapixels, and thousands of images, pass in bounded memory.

In: sizes and a seed. Out: a line of figures each; an `AssertionError` where memory grows. The network is not trained:
its weights are set so that foreground follows brightness, which makes nuclei of bright blobs.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tifffile
import torch
import yaml
from numpy.typing import NDArray

from pipeline.folds.tree_store import write_trees
from pipeline.images.store import PackWriter
from pipeline.images.table import TABLE_COLUMNS
from pipeline.params import Params, load_params
from pipeline.unet.model import NormalizedUNet, build_model
from pipeline.unet.size import SizeReader, save_reader
from pipeline.unet.weights import record_params, save_weights

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 6e9
_PATTERN_PX = 500
_DIAMETER_PX = 28.0


class Usage(NamedTuple):
    """What a process took: wall time, and the peaks of all its memory and of that which is no page of a file."""

    seconds: float
    peak_bytes: int
    private_bytes: int


def check_large(side_px: int, seed: int) -> str:
    """Send one image of `side_px` x `side_px` through `predict`, and return px, seconds, memory and nuclei."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run = lay_out_run(home / "run", seed)
        write_image(home / "large.tif", side_px, side_px, seed)
        command = ["-m", "pipeline", "predict", str(home / "large.tif"), "--out", str(home / "out"), "--run", str(run)]
        used = _measure(command)
        with tifffile.TiffFile(home / "out" / "large.label_map.tif") as file:
            assert file.series[0].shape == (side_px, side_px)
        nuclei = len(pd.read_csv(home / "out" / "large.nuclei.csv"))
    # A nucleus for each blob of the pattern, but for those at the image's border.
    expected = (side_px / _PATTERN_PX) ** 2 * len(_place_blobs(_PATTERN_PX, _PATTERN_PX, seed))
    assert 0.8 * expected <= nuclei <= 1.2 * expected, f"{nuclei} nuclei, not about {expected:.0f}"
    assert used.peak_bytes < LIMIT_BYTES, f"{used.peak_bytes / 2**30:.2f} GiB"
    return (
        f"one image of {side_px} x {side_px} px ({side_px**2 / 1e6:.0f} Mpx): {used.seconds:.0f} s, "
        f"{used.peak_bytes / 2**30:.2f} GiB, {nuclei} nuclei"
    )


def check_many(count: int, seed: int) -> str:
    """Predict `count` test images and a fifth of them, and return how the memory of the two differs."""
    used = {}
    for number in (count // 5, count):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            # Sizes would take most of the time. With this batch some 250 images are read ahead: memory is level after
            # a few times as many.
            run = lay_out_run(home / "run", seed, size__object_diameter_px=0.0, predict__batch=1)
            write_test_split(home / "test", number, seed)
            command = ["-m", "pipeline.stages", "predict_testset", "--prepared", str(home / "test")]
            command += ["--weights", str(run / "folds/weights/main"), "--sizes", str(run / "folds/sizes/main")]
            command += ["--share", "0", "--out", str(home / "probabilities.npz"), "--params", str(run / "params.yaml")]
            used[number] = _measure(command)
    few, many = used[count // 5], used[count]
    # Of the store's file, pages that were read stay mapped as long as nobody else needs the memory: they do not count.
    limit = 1.1 * few.private_bytes + 50e6
    assert many.private_bytes <= limit, f"{many.private_bytes / 2**20:.0f} MiB, {few.private_bytes / 2**20:.0f} before"
    return (
        f"{count} images: {many.seconds:.0f} s, {many.private_bytes / 2**20:.0f} MiB ({many.peak_bytes / 2**20:.0f} "
        f"with mapped files), for {count // 5}: {few.private_bytes / 2**20:.0f} MiB"
    )


def lay_out_run(home: Path, seed: int, **changes: object) -> Path:
    """Make the folder of a run that `predict` takes, with params.yaml and untrained networks, and return it.

    `changes` are parameters, as `section__name`.
    """
    params = _make_params(seed, changes)
    folds = home / "folds"
    for fold in params.folds.ids:
        model = make_network(params)
        save_weights(model, folds / "weights" / "main" / f"{fold}.safetensors", record_params(params.recipe))
        deepest = [block[0].out_channels for block in model.net.contracting[-2:]]
        reader = SizeReader(np.zeros(2 * sum(deepest)), math.log2(_DIAMETER_PX))
        save_reader(reader, folds / "sizes" / "main" / f"{fold}.safetensors")
    choice = {"seed_threshold": 0.5, "boundary_weight": 1.0, "mask_threshold": 0.5, "min_area_px": 20}
    (folds / "decoding.json").write_text(
        json.dumps({"all": choice, "folds": {}, "members": {"all": {"main": 1}, "folds": {}}})
    )
    write_trees(folds / "trees.npz", None)
    (home / "params.yaml").write_text(yaml.safe_dump(json.loads(params.model_dump_json())))
    return home


def _make_params(seed: int, changes: dict[str, object]) -> Params:
    content = load_params(ROOT / "params.yaml").model_dump()
    content["unet"] = {
        "name": "vanilla", "depth": 2, "width": 2, "padding": "same", "upsampling": "nearest", "dropout": 0.0,
    }  # fmt: skip
    content["train"] |= {"seed": seed}
    content["runtime"] |= {"device": "cpu", "precision": "fp32"}
    content["size"] |= {"object_diameter_px": _DIAMETER_PX}
    content["folds"] |= {"ids": [0, 1]}
    content["predict"] |= {"scales": (0.5, 1.0)}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section][name] = value
    return Params.model_validate(content)


def make_network(params: Params) -> NormalizedUNet:
    """Return a network whose foreground and distance follow brightness, and which sees no boundaries."""
    model = build_model(params.unet)
    with torch.no_grad():
        for weight in model.net.parameters():
            if weight.ndim == 4:
                weight.zero_()
        # The skip of full resolution is the first half of what the last block takes; its channel 0 passes through.
        first, last = model.net.contracting[0], model.net.expanding[-1]
        # `NormalizedUNet` takes a mean off, which is added again: the ReLUs would cut what is below it.
        first[0].weight[0, :, 1, 1] = model.std.flatten() / 3
        first[1].bias[0] = model.mean.mean()
        for convolution in (first[3], last[0], last[3]):
            convolution.weight[0, 0, 1, 1] = 1
        model.net.head.weight[[0, 2], 0] = 12
        model.net.head.bias.copy_(torch.tensor([-6.0, -9.0, -6.0]))
    return model


def draw_nuclei(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) uint8 RGB of bright blobs that do not touch, on a dark ground."""
    image = np.random.default_rng(seed).integers(8, 24, (height, width), dtype=np.uint8)
    rows, columns = np.mgrid[-12:13, -12:13]
    for row, column, radius in _place_blobs(height, width, seed):
        disc = np.clip(250 - 100 * ((rows**2 + columns**2) / radius**2), 0, None)
        part = image[row - 12 : row + 13, column - 12 : column + 13]
        part[rows**2 + columns**2 <= radius**2] = disc[rows**2 + columns**2 <= radius**2]
    return image[..., None].repeat(3, axis=2)


def _place_blobs(height: int, width: int, seed: int) -> list[tuple[int, int, int]]:
    """Return row, column and radius of blobs, all inside, one for each cell of a grid of 40 px."""
    rng = np.random.default_rng(seed)
    corners = [(row, column) for row in range(0, height - 39, 40) for column in range(0, width - 39, 40)]
    return [(row + int(rng.integers(14, 26)), column + int(rng.integers(14, 26)), int(rng.integers(7, 12)))
            for row, column in corners]  # fmt: skip


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    """Write an uncompressed RGB TIFF that repeats a pattern of blobs, without the whole in memory."""
    pattern = draw_nuclei(_PATTERN_PX, _PATTERN_PX, seed)
    strip = np.tile(pattern, (1, -(-width // _PATTERN_PX), 1))[:, :width]
    strips = (strip[: height - top].tobytes() for top in range(0, height, _PATTERN_PX))
    tifffile.imwrite(
        path, strips, shape=(height, width, 3), dtype=np.uint8, rowsperstrip=_PATTERN_PX, photometric="rgb"
    )


def write_test_split(folder: Path, count: int, seed: int, side_px: int = 96) -> None:
    """Write a prepared test split of `count` images, as the stage `prepare` lays it out."""
    folder.mkdir(parents=True)
    rows = [dict.fromkeys(TABLE_COLUMNS, 0) | {"image_id": f"{number:06d}"} for number in range(count)]
    table = pd.DataFrame(rows).assign(source="test", height=side_px, width=side_px, image_type="fluorescence")
    table.to_csv(folder / "table.csv", index=False)
    images = [draw_nuclei(side_px, side_px, seed + number) for number in range(min(count, 20))]
    with PackWriter(folder / "images.npz") as pack:
        for number in range(count):
            pack.add(f"{number:06d}.image", images[number % len(images)])


def _measure(arguments: list[str]) -> Usage:
    """Run python with `arguments`, and return what it took. Raises RuntimeError where it fails."""
    begin = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log)
        private, code = 0, None
        while code is None:
            private = max(private, _read_private(child.pid))
            time.sleep(0.02)
            done, status, used = os.wait4(child.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
        child.returncode = code  # it is waited for already
        log.seek(0)
        if code != 0:
            raise RuntimeError(f"{' '.join(arguments)}: exit {code}: {log.read().decode()[-2000:]}")
    return Usage(time.monotonic() - begin, used.ru_maxrss * 1024, private)


def _read_private(process: int) -> int:
    """Return the bytes of a process that are in memory and no pages of a file."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0  # it has ended
