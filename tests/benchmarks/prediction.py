"""Row 9: probabilities of real images, one view and the eight of test-time augmentation, against the plain loop.

The peer is what a notebook does: the same network in float32, one image at a time, mirrored at its borders up to the
multiple that the network takes, one view after another.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from pipeline.experiments.inference import predict_at
from pipeline.images.contrast import apply_contrast, find_contrast
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.params import Params
from pipeline.unet.folding import fold_batch_norms
from pipeline.unet.model import NormalizedUNet, build_model
from pipeline.unet.runtime import configure_torch
from pipeline.unet.views import View, views_of
from tests.benchmarks.harness import Report, Row, Setting, compare_row, compose_params, time_pair

IMAGES = 24

Image = np.ndarray[Any, np.dtype[np.uint8]]


@torch.inference_mode()
def usual_prediction(model: NormalizedUNet, image: Image, views: Sequence[View], params: Params) -> Image:
    """Return the probabilities (H, W, 3) uint8 of one image."""
    height, width = image.shape[:2]
    stretched = apply_contrast(image, find_contrast(image, params.contrast))
    below, right = -height % model.multiple // 2, -width % model.multiple // 2
    top, left = -height % model.multiple - below, -width % model.multiple - right
    padded = np.pad(stretched, ((top, below), (left, right), (0, 0)), mode="symmetric")
    x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    outputs = [view.invert(model(view.apply(x).contiguous()).sigmoid()) for view in views]
    mean = torch.stack(outputs).mean(dim=0)[0, :, top : top + height, left : left + width]
    return mean.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def prediction_row(
    number: str, setting: Setting, encoder: str, network: str, kind: Literal["identity", "d4"], count: int
) -> Row:
    params = compose_params(["train=cpu", "train.device=cpu", f"unet.encoder={encoder}", "unet.weights=none"])
    params = params.model_copy(update={"predict": params.predict.model_copy(update={"views": kind, "scales": (1.0,)})})
    configure_torch(params.train.threads)
    prepared = setting.prepared / "train"
    pack = Pack(prepared / "images.npz")
    names = read_table(prepared)["image_id"].sample(frac=1.0, random_state=0).tolist()[:count]
    images = [(name, np.asarray(pack[f"{name}.image"])) for name in names]
    torch.manual_seed(0)
    plain = build_model(params.unet).eval()
    fast = fold_batch_norms(plain, torch.rand(1, 3, 64, 64))  # as `load_models` does
    views = views_of(kind)

    def ours() -> list[Image]:
        return [each.probabilities[0] for each in predict_at([fast], images, params, None)]

    def theirs() -> list[Image]:
        return [usual_prediction(plain, image, views, params) for _, image in images]

    exact = params.model_copy(update={"train": params.train.model_copy(update={"precision": "fp32"})})
    # An untrained network's borders differ with where tiles lie: compared is what fits in one tile.
    whole = [(name, image) for name, image in images if max(image.shape) <= params.predict.tile_px]
    for (name, ours_fp32, _), (_, image) in zip(predict_at([fast], whole, exact, None), whole, strict=True):
        worst = int(np.abs(ours_fp32[0].astype(int) - usual_prediction(plain, image, views, params)).max())
        if worst > 1 or ours_fp32.std() < 1:
            raise AssertionError(f"{name}: the two sides differ by {worst} of 255 in float32")
    timing = time_pair(ours, theirs, setting.runs, 0)
    megapixels = sum(image.shape[0] * image.shape[1] for _, image in images) / 1e6
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
