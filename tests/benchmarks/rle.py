"""Row 7: label maps to the bytes of a submission, against the function that most kernels of the competition used."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.nuclei.submission import write_submission
from tests.benchmarks.harness import Report, Setting, compare_row, seconds_of, time_pair

IMAGES = 80  # the peer takes seconds for them


def usual_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return start and length of each run of one nucleus, pixel by pixel, as the competition's kernels did."""
    runs: list[int] = []
    last = -2
    for pixel in np.where(mask.T.flatten() == 1)[0]:
        if pixel > last + 1:
            runs.extend((pixel + 1, 0))
        runs[-1] += 1
        last = pixel
    return runs


def usual_submission(path: Path, label_maps: dict[str, NDArray[np.integer]]) -> None:
    """Write a submission nucleus by nucleus, through a table."""
    ids, texts = [], []
    for image_id, label_map in label_maps.items():
        for label in range(1, label_map.max() + 1):
            ids.append(image_id)
            texts.append(" ".join(str(number) for number in usual_runs(label_map == label)))
    table = pd.DataFrame({"ImageId": ids, "EncodedPixels": texts})
    table.to_csv(path, index=False, lineterminator="\n")


def sample_label_maps(setting: Setting, count: int) -> dict[str, NDArray[np.integer]]:
    """Return true label maps of a seeded draw of images, their ids 1..N."""
    split = setting.split
    chosen = split.table["image_id"].sample(min(count, len(split)), random_state=0)
    return {name: np.array(label_map) for name, label_map in split.select(chosen).label_maps()}


def run(setting: Setting) -> Report:
    label_maps = sample_label_maps(setting, IMAGES)
    ours, theirs = setting.scratch / "ours.csv", setting.scratch / "theirs.csv"

    def items() -> Iterator[tuple[str, NDArray[np.integer]]]:
        yield from label_maps.items()

    timing = time_pair(
        lambda: write_submission(ours, items()), lambda: usual_submission(theirs, label_maps), setting.runs
    )
    if ours.read_bytes() != theirs.read_bytes():
        raise AssertionError("the two submissions differ")
    reading = min(seconds_of(lambda: [label_map.max() for label_map in label_maps.values()]) for _ in range(9))
    nuclei = sum(int(label_map.max()) for label_map in label_maps.values())
    what = f"label maps of {len(label_maps)} images, {nuclei} nuclei, to the CSV"
    note = f"identical bytes; ours takes {min(timing.ours) / reading:.0f} times one read of the label maps"
    for path in (ours, theirs):
        path.unlink()
    return Report([compare_row("7", what, "one mask at a time, pixel by pixel", ">= 20x", timing, note)])
