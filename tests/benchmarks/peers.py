"""Row 11: from image to label map, one network, one view and one core, beside StarDist and Cellpose.

Neither has its weights in its package, so neither runs here from end to end. Measured beside ours is the half of
StarDist that needs none, from distances to a label map, on the true distances: less than StarDist's time, and the best
score that its 32 rays can have. What else is told is what the authors published.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stardist.geometry import polygons_to_label, star_dist
from stardist.nms import non_maximum_suppression
from stardist.utils import edt_prob

from pipeline.files import read_json
from pipeline.folds.finder import read_decodings
from pipeline.folds.networks import load_models
from pipeline.folds.prediction import predict_at
from pipeline.nuclei.decoding import decode_instances
from pipeline.nuclei.metric import score
from pipeline.params import load_params
from pipeline.unet.runtime import start_runtime
from tests.benchmarks.harness import ROOT, Report, Row, Setting, Table, count_megapixels, draw_images, time_pair

IMAGES = 24
GRID = 2  # StarDist's pretrained networks predict every second pixel
LabelMap = NDArray[np.integer]

# s per Mpx on a CPU, as their authors gave them in answers on their trackers.
STARDIST_S = 0.7 / 1.05
PUBLISHED = [
    ["StarDist, 1024 x 1024, ~1400 nuclei, one core", "stardist/stardist#39: 0.7 s", f"{STARDIST_S:.2g}", "2000"],
    ["Cellpose of 2020, 2025 x 2025, one network, laptop", "MouseLand/cellpose#119: 16 s", f"{16 / 4.1:.2g}", ""],
    ["Cellpose of 2020, 2025 x 2025, four networks, laptop", "MouseLand/cellpose#119: 41 s", f"{41 / 4.1:.2g}", ""],
]


def star_distances(truth: LabelMap) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what a StarDist network that is always right would predict: probabilities and distances."""
    step = slice(None, None, GRID)
    return edt_prob(truth)[step, step], star_dist(truth, n_rays=32)[step, step]


def decode_stars(prob: NDArray[Any], dist: NDArray[Any], shape: tuple[int, ...]) -> LabelMap:
    """Return the label map, by the calls and thresholds of StarDist's own prediction."""
    points, scores, kept = non_maximum_suppression(dist, prob, grid=(GRID, GRID), prob_thresh=0.479, nms_thresh=0.3)
    stars: LabelMap = polygons_to_label(kept, points, shape=shape, prob=scores)
    return stars


def run(setting: Setting) -> Report:
    params = load_params(ROOT / "params.yaml")
    models = load_models(ROOT / "folds" / "weights" / params.member_ids[0], params.folds.ids[:1], params.recipe)
    decoding = read_decodings(ROOT / "folds" / "decoding.json")["all"]
    one_view = params.predict.model_copy(update={"views": "identity", "scales": (1.0,)})
    runtime = start_runtime(params.runtime.model_copy(update={"device": "cpu", "threads": 1}))
    split = setting.split
    images = draw_images(split, IMAGES)
    truths = [split.label_map(name).astype(np.int32) for name, _ in images]
    stars = [star_distances(truth) for truth in truths]

    def ours() -> list[LabelMap]:
        predictions = predict_at(models, images, None, params.contrast, one_view, runtime)
        return [decode_instances(probabilities[0], decoding) for _, probabilities, _ in predictions]

    def theirs() -> list[LabelMap]:
        return [decode_stars(*star, truth.shape) for star, truth in zip(stars, truths, strict=True)]

    timing = time_pair(ours, theirs, setting.runs)
    megapixels, nuclei = count_megapixels(images), sum(int(found.max()) for found in ours())
    our_s, their_s = float(np.median(timing.ours)), float(np.median(timing.theirs))
    best = float(np.mean([score(truth, stars) for truth, stars in zip(truths, theirs(), strict=True)]))
    cv = read_json(ROOT / "folds" / "cv.json")
    row = Row(
        "11",
        f"image to label map, one network, view and core, {IMAGES} images, {nuclei} nuclei found, {megapixels:.1f} Mpx",
        "StarDist's published time, one core",
        f"{STARDIST_S * megapixels / our_s:.2g} of the s per Mpx",
        "faster at an equal or better score",
        f"{our_s / megapixels:.2g} s per Mpx, {nuclei / our_s:.0f} nuclei per s",
        f"{STARDIST_S:.2g} s per Mpx, 2000 nuclei per s",
        "not side by side: another machine, and an image that is denser in nuclei. Nor do scores compare: the "
        f"cross-validation of the run that has these weights gives mAP {cv['cv_map']:.3f} on {cv['images']} images",
    )
    rows = [
        ["this pipeline, from image to label map, one core", "measured here", our_s],
        [f"StarDist's half without a network, of true distances (mAP {best:.3f})", "measured here", their_s],
    ]
    measured = [[what, by, f"{s / megapixels:.2g}", f"{nuclei / s:.0f}"] for what, by, s in rows]
    header = ["what", "where the figure is from", "s per Mpx on a CPU", "nuclei per s"]
    return Report([row], [Table("Nuclei, from image to label map, on a CPU", header, measured + PUBLISHED)])
