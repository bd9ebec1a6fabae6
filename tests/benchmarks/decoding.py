"""Row 6: probabilities to label maps, against scikit-image's plain chain; and the search over decoding parameters.

The probabilities are made of the true label maps, blurred and with smooth noise, so that no network is needed and the
faults of real ones are there: nuclei that touch, faint borders, gaps.
"""

from itertools import product
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.feature import peak_local_max
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from pipeline.compose import compose_params
from pipeline.nuclei.decoding import decode_instances, drop_small, find_cores, grow_nuclei, scale_probabilities
from pipeline.nuclei.metric import count_matches, score
from pipeline.nuclei.targets import encode_targets
from pipeline.nuclei.tuning import count_image, decoding_grid
from tests.benchmarks.harness import Report, Setting, compare_row, time_pair
from tests.benchmarks.rle import sample_label_maps

IMAGES = 60


def make_probabilities(label_map: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8, as a network that is right on the whole and unsure at borders would predict."""
    params = compose_params().targets
    targets = encode_targets(torch.from_numpy(label_map.astype(np.int32))[None], params)[0].permute(1, 2, 0).numpy()
    noise = cv2.GaussianBlur(rng.normal(0, 2.0, targets.shape).astype(np.float32), (0, 0), 4)
    return ((cv2.GaussianBlur(targets, (0, 0), 1.5) + noise).clip(0, 1) * 255).round().astype(np.uint8)


def usual_decoding(
    probabilities: NDArray[np.uint8], threshold: float, min_distance: int, min_area: int
) -> NDArray[np.integer]:
    """Return a label map by the chain of scikit-image's own example: distance transform, peaks, watershed."""
    mask = probabilities[..., 0] > 255 * threshold
    distance = distance_transform_edt(mask)
    peaks = peak_local_max(distance, min_distance=min_distance, labels=mask.astype(np.int32))
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return remove_small_objects(watershed(-distance, markers, mask=mask), max_size=min_area - 1)


def run(setting: Setting) -> Report:
    truths = list(sample_label_maps(setting, IMAGES).values())
    rng = np.random.default_rng(0)
    maps = [make_probabilities(truth, rng) for truth in truths]
    choices = decoding_grid(compose_params().decode)

    def mean_score(decode: Any, *settings: Any) -> float:
        return float(np.mean([score(t, decode(m, *settings)) for t, m in zip(truths, maps, strict=True)]))

    # Each side with its own best of a few settings.
    chosen = max(choices[:: max(1, len(choices) // 12)], key=lambda choice: mean_score(decode_instances, choice))
    plain = max(
        product([0.4, 0.5, 0.6], [3, 5, 8], [chosen.min_area_px]), key=lambda one: mean_score(usual_decoding, *one)
    )
    our_score, plain_score = mean_score(decode_instances, chosen), mean_score(usual_decoding, *plain)
    if our_score < plain_score:
        raise AssertionError(f"ours scores {our_score:.3f}, the plain chain {plain_score:.3f}")
    timing = time_pair(
        lambda: [decode_instances(one, chosen) for one in maps],
        lambda: [usual_decoding(one, *plain) for one in maps],
        setting.runs,
    )
    megapixels = sum(truth.size for truth in truths) / 1e6
    what = f"probabilities to label maps, {len(maps)} images, {megapixels:.0f} Mpx"
    note = f"score of ours {our_score:.3f}, of the plain chain {plain_score:.3f}, each with its best of a few settings"
    return Report(
        [
            compare_row("6a", what, "scikit-image: label, distance, peaks, watershed", ">= 3.5x", timing, note),
            search_row(setting, truths, maps),
        ]
    )


def search_row(setting: Setting, truths: list[Any], maps: list[Any]) -> Any:
    """Row 6b: the counts of all decodings, with what they share done once, against decoding anew for each."""
    choices, pairs = decoding_grid(compose_params(["train=cpu"]).decode), list(zip(maps, truths, strict=True))[:12]

    def anew(one: NDArray[np.uint8], choice: Any) -> NDArray[np.int32]:
        scaled = scale_probabilities(one)
        core = find_cores(scaled, choice.boundary_weight)
        return drop_small(grow_nuclei(scaled, core, choice), choice.min_area_px)

    def ours() -> list[Any]:
        return [count_image(one, truth, choices) for one, truth in pairs]

    def theirs() -> list[Any]:
        return [[count_matches(truth, anew(one, choice)) for choice in choices] for one, truth in pairs]

    for mine, reference in zip(ours(), theirs(), strict=True):
        for first, second in zip(mine, reference, strict=True):
            if first.n_prediction != second.n_prediction or (first.true_positives != second.true_positives).any():
                raise AssertionError("the search counts otherwise than decoding anew")
    timing = time_pair(ours, theirs, setting.runs, 0)
    what = f"search of {len(choices)} decodings, {len(pairs)} images"
    return compare_row("6b", what, "decoding anew for each", "printed", timing, "identical counts")
