"""Row 5: the score's counts at ten IoU thresholds, against stardist.matching."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from stardist.matching import matching

from pipeline.nuclei.metric import THRESHOLDS_PERCENT, Matches, count_matches
from tests.benchmarks.harness import Report, Setting, compare_row, seconds_of, time_pair
from tests.benchmarks.rle import sample_label_maps

IMAGES = 120
# StarDist counts IoU >= threshold in float32: the next number up makes it the competition's strict rule.
THRESHOLDS = [float(np.nextafter(np.float32(percent / 100), np.float32(1))) for percent in THRESHOLDS_PERCENT]


def perturb(label_map: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int32]:
    """Return a prediction with the faults of real ones: shifted, thinner or thicker, nuclei lost and merged."""
    ids = np.arange(label_map.max() + 1)
    lost, merged = rng.random(ids.size) < 0.05, rng.random(ids.size) < 0.05
    ids[merged[1:].nonzero()[0] + 1] = ids[merged[1:].nonzero()[0]]
    ids[lost] = 0
    changed = ids[label_map].astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    changed = cv2.erode(changed, kernel) if rng.random() < 0.5 else cv2.dilate(changed, kernel)
    return np.roll(changed.astype(np.int32), rng.integers(-2, 3, 2), axis=(0, 1))


def run(setting: Setting) -> Report:
    truths = list(sample_label_maps(setting, IMAGES).values())
    rng = np.random.default_rng(0)
    pairs = [(truth, perturb(truth, rng)) for truth in truths]

    def ours() -> list[Matches]:
        return [count_matches(truth, prediction) for truth, prediction in pairs]

    def theirs() -> list[Any]:
        return [matching(truth, prediction, thresh=THRESHOLDS) for truth, prediction in pairs]

    for mine, reference in zip(ours(), theirs(), strict=True):
        counts = [(one.tp, one.tp + one.fp, one.tp + one.fn) for one in reference]
        if counts != [(int(hits), mine.n_prediction, mine.n_truth) for hits in mine.true_positives]:
            raise AssertionError("the counts differ")
    timing = time_pair(ours, theirs, setting.runs)
    reading = min(seconds_of(lambda: [truth.max() + prediction.max() for truth, prediction in pairs]) for _ in range(9))
    megapixels = sum(truth.size for truth in truths) / 1e6
    note = f"identical counts; ours takes {min(timing.ours) / reading:.0f} times one read of both maps"
    what = f"counts at ten thresholds, {len(pairs)} images, {megapixels:.0f} Mpx"
    return Report([compare_row("5", what, "stardist.matching, made strict", ">= 10x", timing, note)])
