"""Probes: labelled images made unlike any that training has seen, in ways that microscopes and stains differ.

In: an image (H, W, 3) uint8 RGB and its label map (H, W). Out: another of each. `pipeline.studies.unseen` scores them
by networks that saw neither these images nor their tiles, beside the acquisitions that it leaves out. The same image
gives the same probe.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.diameter import equivalent_diameter
from pipeline.images.image_type import STAINED_TYPES

Image = NDArray[np.uint8]
Labels = NDArray[np.integer]
Triple = tuple[float, float, float]

# Mean and deviation in CIE L*a*b* of what stage1_test has and training lacks, over its images of one frame and type.
_PINK = ((58.0, 28.7, -14.6), (19.8, 12.4, 11.3))
_VIOLET_ON_YELLOW = ((76.7, 5.2, 0.9), (19.6, 12.8, 14.7))
_PALE = ((83.1, -0.8, 3.4), (18.0, 9.1, 14.4))
_DIM_LEVELS, _NOISE = 25, 1.0  # what the brightest pixels are dimmed to, and the camera's noise, in levels
_BLUR_SHARE = 0.12  # of the median nucleus's diameter, as the blur's standard deviation


def recolour(image: Image, labels: Labels, *, mean: Triple, deviation: Triple) -> tuple[Image, Labels]:
    """Give an image the mean and deviation of each channel of CIE L*a*b*.

    Source: Reinhard et al., Color Transfer between Images, IEEE Computer Graphics and Applications 21 (2001) 34.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    flat = lab.reshape(-1, 3)
    moved = (lab - flat.mean(0)) / (flat.std(0) + 1e-3) * np.array(deviation) + np.array(mean)
    back = cv2.cvtColor(moved.astype(np.float32), cv2.COLOR_LAB2RGB)
    return (back * 255).round().clip(0, 255).astype(np.uint8), labels


def blur(image: Image, labels: Labels) -> tuple[Image, Labels]:
    """Defocus an image by an eighth of a nucleus."""
    sigma = _BLUR_SHARE * median_diameter(labels) or 1.0
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8), labels


def dim(image: Image, labels: Labels) -> tuple[Image, Labels]:
    """Leave an image little light, so that its levels are few and its noise is plain."""
    noise = np.random.default_rng(0).normal(0, _NOISE, image.shape[:2])[..., None]
    gain = _DIM_LEVELS / max(float(np.percentile(image, 99.9)), _DIM_LEVELS)
    return (image * gain + 3 + noise).round().clip(0, 255).astype(np.uint8), labels


def rescale(image: Image, labels: Labels, *, zoom: float) -> tuple[Image, Labels]:
    """Show an image larger or smaller."""
    size = (max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom)))
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    ids = cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(scaled, np.uint8), ids.astype(np.int32)


def crowd(image: Image, labels: Labels) -> tuple[Image, Labels]:
    """Lay a dark image over its mirror images, the brighter pixel on top, so that nuclei touch."""
    crowded, found = image, labels.astype(np.int32)
    for axis in (0, 1):
        mirrored, ids = np.flip(image, axis), np.flip(labels, axis).astype(np.int32)
        # Where two nuclei overlap, the pixels are the brighter one's.
        on_top = (ids > 0) & ((found == 0) | (mirrored.max(axis=2) > crowded.max(axis=2)))
        found = np.where(on_top, ids + found.max(), found)
        crowded = np.maximum(crowded, mirrored)
    return np.ascontiguousarray(crowded), found


def median_diameter(label_map: Labels) -> float:
    """Return the diameter in px of the median nucleus of a label map (H, W); 0 where there is none."""
    areas = np.bincount(label_map.ravel())[1:]
    return float(equivalent_diameter(np.array([np.median(areas[areas > 0])]))[0]) if areas.any() else 0.0


class Probe(NamedTuple):
    """What is done to an image, and the types of images that it is for."""

    apply: Callable[[Image, Labels], tuple[Image, Labels]]
    image_types: tuple[str, ...]


_DARK = ("fluorescence",)
PROBES = {
    "probe_pink": Probe(partial(recolour, mean=_PINK[0], deviation=_PINK[1]), STAINED_TYPES),
    "probe_violet_on_yellow": Probe(
        partial(recolour, mean=_VIOLET_ON_YELLOW[0], deviation=_VIOLET_ON_YELLOW[1]), STAINED_TYPES
    ),
    "probe_pale": Probe(partial(recolour, mean=_PALE[0], deviation=_PALE[1]), STAINED_TYPES),
    "probe_blurred": Probe(blur, _DARK),
    "probe_dimmed": Probe(dim, _DARK),
    "probe_small": Probe(partial(rescale, zoom=0.5), _DARK),
    "probe_large": Probe(partial(rescale, zoom=2.0), _DARK),
    "probe_crowded": Probe(crowd, _DARK),
}
