"""The zoom that an image is seen at: how large its nuclei are, in two ways of each network.

In: the networks of some folds with their size readers, and an image. Out: the zoom that brings its median nucleus to
the size that the networks know. First the reader reads a size off the network's features; then the network finds nuclei
at the zoom that this asks for, and they are measured. The two err in different ways, the reader where the image is
unlike all that it was fitted on, what was found where nuclei are merged or in pieces: the mean of both, in octaves, is
taken. At that zoom nuclei are found and measured once more, and the mean of the two zooms is taken.

Source: Cellpose estimates sizes by these two steps too; Stringer et al. 2021, Nature Methods 18:100, "Size model"
    (doi:10.1038/s41592-020-01018-x).
"""

import math

import numpy as np
import torch

from pipeline.diameter import equivalent_diameter
from pipeline.folds.networks import Folds
from pipeline.nuclei.decoding import Decoding, decode_instances
from pipeline.params import SizeParams
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.prediction import Windows
from pipeline.unet.runtime import Runtime
from pipeline.unet.size import bound_zoom, cut_window, read_octaves

# How often nuclei are found and measured, each time at the mean of the last zoom and the one that they asked for.
_MEASUREMENTS = 2
# Zooms are rounded to eighths of an octave, 9 %, less than the estimate's error: images of one zoom share batches.
_STEPS_PER_OCTAVE = 8
# How nuclei are found that are only measured; what is smaller than a share of a nucleus of the wanted size is none.
_DECODING = Decoding(seed_threshold=0.7, boundary_weight=1.0, mask_threshold=0.7, min_area_px=1)
_LEAST_SHARE = 0.06
# The window's edge cuts nuclei: where so many others are whole, those are left out.
_WHOLE = 3
# Of a nucleus such as half of what is covered belongs to larger ones: what has a smaller share of its area is a piece.
_PIECE = 0.25


def find_zoom(folds: Folds, image: Windows, size: SizeParams, runtime: Runtime) -> float:
    """Return the zoom that brings an image's median nucleus to the size that networks know: the median over networks.

    Args:
        folds: networks, in `eval` mode and on the device of `runtime`, and their readers.
        image: (H, W, 3) uint8 RGB, as networks see it.
        size: that size, 0 where networks were trained on native sizes, which gives zoom 1; and how to look at images.
        runtime: where the networks run, and how.
    """
    if size.object_diameter_px == 0:
        return 1.0
    lowest, highest = bound_zoom(image.shape, size)
    octaves = []
    for model, reader in zip(folds.models, folds.readers, strict=True):
        looked = read_octaves(model, reader, image, size, runtime)
        for _ in range(_MEASUREMENTS):
            diameter_px = measure_diameter(model, image, 2**looked, size, runtime)
            if not diameter_px:
                break
            measured = math.log2(np.clip(size.object_diameter_px / diameter_px, lowest, highest))
            looked = (looked + measured) / 2
        octaves.append(looked)
    rounded = round(float(np.median(octaves)) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE
    return float(np.clip(2**rounded, lowest, highest))


@torch.inference_mode()
def measure_diameter(model: NormalizedUNet, image: Windows, zoom: float, size: SizeParams, runtime: Runtime) -> float:
    """Return the median diameter, in px of an image, of the nuclei that a network finds in its middle; 0 if none.

    Pieces and specks, many as they may be, do not count.

    Args:
        model: in `eval` mode, on the device of `runtime`.
        image: (H, W, 3) uint8 RGB, as networks see it.
        zoom: the network sees the image this many times larger.
        size: the size that it knows, and how large a window it is shown.
        runtime: where the network runs, and how.
    """
    window, (height, width) = cut_window(model, image, zoom, size.window_px, runtime)
    with runtime.autocast():
        logits = model(window.contiguous(memory_format=runtime.memory_format))
    # What was added to make up a length that the network takes is no part of the image.
    inside = logits[0, :, : max(0, height - 2 * model.margin_px), : max(0, width - 2 * model.margin_px)]
    if min(inside.shape[1:]) < min(size.object_diameter_px, height, width):
        return 0.0  # a network with valid padding has seen too little
    probabilities = inside.float().sigmoid().mul(255).round().to(torch.uint8).permute(1, 2, 0)
    label_map = decode_instances(probabilities.cpu().numpy(), _DECODING)
    areas = np.bincount(label_map.ravel())[1:]
    edge = np.concatenate([label_map[0], label_map[-1], label_map[:, 0], label_map[:, -1]])
    is_nucleus = areas >= _LEAST_SHARE * math.pi / 4 * size.object_diameter_px**2
    is_whole = is_nucleus & np.isin(np.arange(1, len(areas) + 1), edge, invert=True)
    counted = np.sort(areas[is_whole if is_whole.sum() >= _WHOLE else is_nucleus])
    if not len(counted):
        return 0.0
    covered = np.cumsum(counted)
    middle = counted[np.searchsorted(covered, covered[-1] / 2)]
    return float(np.median(equivalent_diameter(counted[counted >= _PIECE * middle]))) / zoom
