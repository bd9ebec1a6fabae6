"""The zoom that an image is seen at: how large its nuclei are, by two looks of each network.

In: the networks of some folds with their size readers, and an image. Out: the zoom that brings its median nucleus to
the size that the networks know. First the reader reads a size off the network's features; then the network finds nuclei
at the zoom that this asks for, and they are measured. The two err in different ways, the reader where the image is
unlike all that it was fitted on, what was found where nuclei are merged: the mean of both, in octaves, is taken.

Source: Cellpose estimates sizes by these two steps too; Stringer et al. 2021, Nature Methods 18:100, "Size model"
    (doi:10.1038/s41592-020-01018-x).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.diameter import equivalent_diameter
from pipeline.folds.networks import Folds
from pipeline.nuclei.decoding import Decoding, decode_instances
from pipeline.params import SizeParams
from pipeline.unet.ensemble import Ensemble
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.runtime import Runtime
from pipeline.unet.size import bound_zoom, cut_window, read_octaves
from pipeline.unet.views import views_of

# Zooms are rounded to eighths of an octave, 9 %, less than the estimate's error: images of one zoom share batches.
_STEPS_PER_OCTAVE = 8
# How nuclei are found that are only measured.
_DECODING = Decoding(seed_threshold=0.7, boundary_weight=1.0, mask_threshold=0.7, min_area_px=40)
# The window's edge cuts nuclei: where so many others are whole, those are left out.
_WHOLE = 3


def find_zoom(folds: Folds, image: NDArray[np.uint8], size: SizeParams, runtime: Runtime) -> float:
    """Return the zoom that brings an image's median nucleus to the size that networks know: the median over networks.

    Args:
        folds: networks, in `eval` mode and on the device of `runtime`, and their readers.
        image: (H, W, 3) uint8 RGB, stretched.
        size: that size, 0 where networks were trained on native sizes, which gives zoom 1; and how to look at images.
        runtime: where the networks run, and how.
    """
    if size.object_diameter_px == 0:
        return 1.0
    lowest, highest = bound_zoom(image.shape, size)
    octaves = []
    for model, reader in zip(folds.models, folds.readers, strict=True):
        read = read_octaves(model, reader, image, size, runtime)
        diameter_px = measure_diameter(model, image, 2**read, size, runtime)
        measured = math.log2(size.object_diameter_px / diameter_px) if diameter_px else read
        octaves.append((read + measured) / 2)
    rounded = round(float(np.median(octaves)) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE
    return float(np.clip(2**rounded, lowest, highest))


@torch.inference_mode()
def measure_diameter(
    model: NormalizedUNet, image: NDArray[np.uint8], zoom: float, size: SizeParams, runtime: Runtime
) -> float:
    """Return the median diameter, in px of `image`, of the nuclei that a network finds in its middle; 0 if none.

    Arguments as of `find_zoom`; the network sees the image at `zoom`.
    """
    window, (height, width) = cut_window(model, image, zoom, size.window_px, runtime)
    probabilities = Ensemble([model], views_of("identity"), runtime).predict(window)[0].permute(1, 2, 0)
    # What was added to make up a length that the network takes is no part of the image.
    inside = probabilities[: max(1, height - 2 * model.margin_px), : max(1, width - 2 * model.margin_px)]
    label_map = decode_instances(inside.mul(255).round().to(torch.uint8).cpu().numpy(), _DECODING)
    areas = np.bincount(label_map.ravel())[1:]
    edge = np.concatenate([label_map[0], label_map[-1], label_map[:, 0], label_map[:, -1]])
    whole = areas[np.isin(np.arange(1, len(areas) + 1), edge, invert=True)]
    counted = whole if len(whole) >= _WHOLE else areas
    return float(np.median(equivalent_diameter(counted))) / zoom if len(counted) else 0.0
