"""Row 9: probabilities of real images, one view and the eight of test-time augmentation, against the plain loop.

The peer is `usual_prediction`, with the same network in float32.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from pipeline.compose import compose_params
from pipeline.folds.prediction import predict_at
from pipeline.unet.fusing import fuse_batch_norms
from pipeline.unet.model import build_model
from pipeline.unet.runtime import start_runtime
from pipeline.unet.views import views_of
from tests.benchmarks.harness import Report, Row, Setting, compare_row, count_megapixels, draw_images, time_pair
from tests.benchmarks.usual_prediction import Image, usual_prediction

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
    fast = fuse_batch_norms(plain, torch.rand(1, 3, 64, 64))  # as `load_models` does
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


def run(setting: Setting) -> Report:
    lite0, resnet18 = ("tu-tf_efficientnet_lite0", "Lite0"), ("resnet18", "ResNet18")
    return Report(
        [
            prediction_row("9a", setting, *lite0, "identity", IMAGES),
            prediction_row("9b", setting, *lite0, "d4", IMAGES // 2),
            prediction_row("9c", setting, *resnet18, "d4", IMAGES // 4),
        ]
    )
