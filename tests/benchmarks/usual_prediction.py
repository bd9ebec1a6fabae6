"""The plain loop of prediction, what a notebook does: one image at a time, one view after another, on any device.

An image is mirrored at its borders up to the multiple that the network takes.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.images.contrast import apply_contrast, find_contrast
from pipeline.params import ContrastParams
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.views import View

Image = np.ndarray[Any, np.dtype[np.uint8]]


@torch.inference_mode()
def usual_prediction(model: NormalizedUNet, image: Image, views: Sequence[View], contrast: ContrastParams) -> Image:
    """Return the probabilities (H, W, 3) uint8 of one image (H, W, 3) uint8 RGB, found where `model` is."""
    height, width = image.shape[:2]
    stretched = apply_contrast(image, find_contrast(image, contrast))
    missing_rows, missing_columns = (model.lengths.input_for(length) - length for length in (height, width))
    below, right = missing_rows // 2, missing_columns // 2
    top, left = missing_rows - below, missing_columns - right
    padded = np.pad(stretched, ((top, below), (left, right), (0, 0)), mode="symmetric")
    x = torch.from_numpy(padded).to(model.mean.device).permute(2, 0, 1)[None].float() / 255
    outputs = [view.invert(model(view.apply(x).contiguous()).sigmoid()) for view in views]
    mean = torch.stack(outputs).mean(dim=0)[0, :, top : top + height, left : left + width]
    return mean.mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def zoomed_prediction(
    model: NormalizedUNet, image: Image, views: Sequence[View], contrast: ContrastParams, zoom: float
) -> Image:
    """Return the probabilities (H, W, 3) uint8 of an image (H, W, 3) uint8 RGB that the network sees at `zoom`."""
    size = tuple(max(1, round(length * zoom)) for length in image.shape[1::-1])
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    found = usual_prediction(model, cv2.resize(image, size, interpolation=method), views, contrast)
    return np.asarray(cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
