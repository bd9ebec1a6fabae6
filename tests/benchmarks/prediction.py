"""Row 9: probabilities of real images, one view and the eight of test-time augmentation, against the plain loop.

The peer is `usual_prediction`, with the same network in float32; in row 9d with what `train=cpu` trained before, whose
decoder ends at full resolution and which sees nuclei at 28 px in place of 24. That the default of now scores no less is
in pipeline/studies/results/time_to_score_end.csv.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from pipeline.compose import compose_params
from pipeline.diameter import zooms_to_size
from pipeline.folds.prediction import predict_at
from pipeline.unet.fusing import fuse_layers
from pipeline.unet.model import build_model
from pipeline.unet.runtime import start_runtime
from pipeline.unet.views import views_of
from tests.benchmarks.harness import Report, Row, Setting, compare_row, count_megapixels, draw_images, time_pair
from tests.benchmarks.training import FULL_RESOLUTION
from tests.benchmarks.usual_prediction import Image, usual_prediction, zoomed_prediction

IMAGES = 24


def prediction_row(
    number: str, setting: Setting, encoder: str, network: str, kind: Literal["identity", "d4"], count: int
) -> Row:
    params = compose_params(["train=cpu", "runtime.device=cpu", f"unet.encoder={encoder}", "unet.weights=null"])
    contrast, predict = params.contrast, params.predict.model_copy(update={"views": kind, "scales": (1.0,)})
    runtime = start_runtime(params.runtime)
    images = draw_images(setting.split, count)
    torch.manual_seed(0)
    plain = build_model(params.unet).eval()
    fast = fuse_layers(plain, torch.rand(1, 3, 64, 64))  # as `load_models` does
    views = views_of(kind)

    def ours() -> list[Image]:
        predictions = predict_at([fast], images, None, contrast, predict, runtime)
        return [each.probabilities[0] for each in predictions]

    def theirs() -> list[Image]:
        return [usual_prediction(plain, image, views, contrast) for _, image in images]

    exact = replace(runtime, precision="fp32")
    # An untrained network's borders differ with where tiles lie: compared is what fits in one tile.
    whole = [(name, image) for name, image in images if max(image.shape) <= predict.tile_px]
    predictions = predict_at([fast], whole, None, contrast, predict, exact)
    for (name, ours_fp32, _), (_, image) in zip(predictions, whole, strict=True):
        worst = int(np.abs(ours_fp32[0].astype(int) - usual_prediction(plain, image, views, contrast)).max())
        if worst > 1 or ours_fp32.std() < 1:
            raise AssertionError(f"{name}: the two sides differ by {worst} of 255 in float32")
    timing = time_pair(ours, theirs, setting.runs, 0)
    megapixels = count_megapixels(images)
    view = "one view" if kind == "identity" else "D4 views"
    what = f"prediction, {network}, {view}, {count} images, {megapixels:.1f} Mpx"
    note = (
        f"{np.median(timing.ours) / megapixels:.2f} s per Mpx against {np.median(timing.theirs) / megapixels:.2f}; in "
        "float32 the two sides agree within 1 of 255"
    )
    return compare_row(number, what, "the same network, fp32, one image and view at a time", ">= 2.5x", timing, note)


def default_row(setting: Setting, count: int) -> Row:
    """Row 9d: images at the zoom of their nuclei, by the default network and by the one before."""
    params = compose_params(["train=cpu", "runtime.device=cpu", "unet.weights=null"])
    before = compose_params(["train=cpu", *FULL_RESOLUTION, "unet.weights=null", "size.object_diameter_px=28"])
    contrast, predict = params.contrast, params.predict.model_copy(update={"views": "identity", "scales": (1.0,)})
    runtime = start_runtime(params.runtime)
    images = draw_images(setting.split, count)
    shown = setting.split.select(name for name, _ in images)
    zooms, zooms_before = (
        dict(zip(shown.image_ids, zooms_to_size(shown.diameters_px, each.size), strict=True))
        for each in (params, before)
    )
    torch.manual_seed(0)
    fast = fuse_layers(build_model(params.unet).eval(), torch.rand(1, 3, 64, 64))
    plain, views = build_model(before.unet).eval(), views_of("identity")

    def ours() -> list[Image]:
        predictions = predict_at([fast], images, lambda name, _: float(zooms[name]), contrast, predict, runtime)
        return [each.probabilities[0] for each in predictions]

    def theirs() -> list[Image]:
        return [zoomed_prediction(plain, image, views, contrast, zooms_before[name]) for name, image in images]

    timing = time_pair(ours, theirs, setting.runs, 0)
    megapixels = count_megapixels(images)
    return compare_row(
        "9d",
        f"prediction, the default network, one view, nuclei at 24 px, {count} images, {megapixels:.1f} Mpx",
        "the one before: full resolution, nuclei at 28 px, fp32, one image at a time",
        ">= 4x",
        timing,
        f"{np.median(timing.ours) / megapixels:.2f} s per Mpx against {np.median(timing.theirs) / megapixels:.2f}",
    )


def run(setting: Setting) -> Report:
    lite0, resnet18 = ("tu-tf_efficientnet_lite0", "Lite0"), ("resnet18", "ResNet18")
    return Report(
        [
            prediction_row("9a", setting, *lite0, "identity", IMAGES),
            prediction_row("9b", setting, *lite0, "d4", IMAGES // 2),
            prediction_row("9c", setting, *resnet18, "d4", IMAGES // 4),
            default_row(setting, IMAGES),
        ]
    )
