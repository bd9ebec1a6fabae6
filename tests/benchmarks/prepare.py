"""Row 8: the competition's archive to arrays, against PIL, one mask at a time in one process."""

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.compose import compose_params
from pipeline.images.prepare import prepare_split
from pipeline.images.splits import PreparedSplit
from tests.benchmarks.harness import Report, Setting, compare_row, time_pair

RUNS = 3  # a run of the peer takes most of a minute


def usual_prepare(archive: Path, out: Path) -> None:
    """Write an image and a label map per image, as a notebook does."""
    out.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".png"))
        masks: dict[str, list[str]] = {}
        for name in names:
            if "/masks/" in name:
                masks.setdefault(name.split("/")[-3], []).append(name)
        for name in names:
            if "/images/" not in name:
                continue
            image_id = name.split("/")[-3]
            image = np.array(Image.open(io.BytesIO(opened.read(name))).convert("RGB"))
            label_map = np.zeros(image.shape[:2], np.uint16)
            for number, mask in enumerate(masks.get(image_id, []), start=1):
                label_map[np.array(Image.open(io.BytesIO(opened.read(mask)))) > 0] = number
            np.save(out / f"{image_id}.image.npy", image)
            np.save(out / f"{image_id}.label_map.npy", label_map)


def count_differing(split: PreparedSplit, folder: Path) -> tuple[int, int]:
    """Return how many images have another foreground, and how many there are."""
    pairs = ((label_map, np.load(folder / f"{name}.label_map.npy")) for name, label_map in split.label_maps())
    return sum(bool(((ours > 0) != (theirs > 0)).any()) for ours, theirs in pairs), len(split)


def run(setting: Setting) -> Report:
    params = compose_params(["data=full"])
    (source,) = params.data.sources.values()
    archive, ours, theirs = setting.archives / source.archive, setting.scratch / "ours", setting.scratch / "theirs"
    ours.mkdir(exist_ok=True)

    def prepare() -> Any:
        return prepare_split(params.data.sources, setting.archives, ours, True, params.data, params.housekeeping)

    timing = time_pair(prepare, lambda: usual_prepare(archive, theirs), RUNS, 0)
    differing, count = count_differing(PreparedSplit.open(ours), theirs)
    for folder in (ours, theirs):
        shutil.rmtree(folder)
    note = (
        f"{differing} of {count} images have another foreground: holes that were filled, specks that were dropped; "
        f"ours also writes the tables of images and problems"
    )
    what = f"{source.archive} to arrays, {count} images, {params.housekeeping.workers} processes"
    return Report([compare_row("8", what, "PIL, one mask at a time, one process", ">= 3.5x", timing, note)])
