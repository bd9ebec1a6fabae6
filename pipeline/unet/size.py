"""How large an image's nuclei are, read off what a trained U-Net's encoder sees in it.

In: a U-Net, and images with the median diameter of their nuclei. Out: a `SizeReader`, and with it the diameter in an
image that nobody has measured. U-Nets are trained and predict near one diameter; the reader is fitted on zooms over
several octaves around it. It looks, zooms to what it read, and looks again, as the estimate is best where nuclei have
the size that the network knows. The zoom that an image is seen at follows in `pipeline/folds/zoom.py`.

Source: Cellpose reads sizes off its network's pooled features in the same way; Stringer et al. 2021, Nature Methods
    18:100, "Size model" (doi:10.1038/s41592-020-01018-x).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from pipeline.errors import InputError, shorten
from pipeline.files import atomic_path
from pipeline.params import SizeParams
from pipeline.unet.model import NormalizedUNet
from pipeline.unet.prediction import Windows
from pipeline.unet.runtime import Runtime

Image = NDArray[np.uint8]
Features = NDArray[np.float32]

_PENALTIES = np.logspace(0, 5, 11)  # of the ridge, chosen by cross-validation over images
_FOLDS = 5  # of that cross-validation


@dataclass(frozen=True)
class SizeReader:
    """A linear map from features (F,) to log2 of the diameter in px of what the network saw."""

    weight: NDArray[np.float64]  # (F,)
    bias: float

    def read(self, features: Features) -> float:
        """Return log2 of the median nucleus diameter, in px of the image that `features` (F,) were taken of.

        Raises:
            InputError: the features are of another network.
        """
        if features.shape != self.weight.shape:
            raise InputError(
                f"a size reader of {self.weight.size} features, and a network of {features.size}; run the stage `size`"
            )
        return float(features.astype(np.float64) @ self.weight) + self.bias


def extract_features(model: NormalizedUNet, image: Windows, zoom: float, window_px: int, runtime: Runtime) -> Features:
    """Return the features (F,) float32 of an image's middle; arguments as of `cut_window`."""
    return pool_features(model, cut_window(model, image, zoom, window_px, runtime)[0], runtime)


@torch.inference_mode()
def pool_features(model: NormalizedUNet, window: Tensor, runtime: Runtime) -> Features:
    """Return the mean and the maximum of each channel of the encoder's two deepest maps, (F,) float32.

    Args:
        model: in `eval` mode, on the device of `runtime`.
        window: (1, 3, H, W) float32 in [0, 1] there, of lengths that the network takes.
        runtime: where the network runs, and how.
    """
    with runtime.autocast():
        maps = model.encode(window.contiguous(memory_format=runtime.memory_format))
    flat = [deep.float().flatten(2) for deep in maps[-2:]]
    return torch.cat([part for deep in flat for part in (deep.mean(2), deep.amax(2))], dim=1)[0].cpu().numpy()


def cut_window(
    model: NormalizedUNet, image: Windows, zoom: float, window_px: int, runtime: Runtime
) -> tuple[Tensor, tuple[int, int]]:
    """Return the middle of an image as a network is shown it, (1, 3, H, W) in [0, 1] on the device, and its own size.

    Below and to the right of that size (h, w) the image is mirrored, up to lengths that the network takes.

    Args:
        model: in `eval` mode, on the device of `runtime`.
        image: (H, W, 3) uint8 RGB, as networks see it.
        zoom: the network sees the image's middle this many times larger.
        window_px: the longest side of what it sees, before it is rounded up to what the network takes.
        runtime: where the network runs, and how.
    """
    source_px = math.ceil(window_px / zoom)
    top, left = (max(0, length - source_px) // 2 for length in image.shape[:2])
    window = image[top : top + source_px, left : left + source_px]
    size = (max(1, round(window.shape[1] * zoom)), max(1, round(window.shape[0] * zoom)))
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    window = np.asarray(cv2.resize(window, size, interpolation=how), np.uint8)
    inner = window.shape[0], window.shape[1]
    height, width = (model.lengths.input_for(max(1, length - 2 * model.margin_px)) for length in inner)
    window = np.pad(window, ((0, height - inner[0]), (0, width - inner[1]), (0, 0)), mode="symmetric")
    return torch.from_numpy(window).to(runtime.device).permute(2, 0, 1).unsqueeze(0).float() / 255, inner


def fit_reader(
    model: NormalizedUNet,
    images: Iterable[tuple[Image, float]],
    size: SizeParams,
    runtime: Runtime,
    recolour: Callable[[Tensor], Tensor] | None = None,
) -> SizeReader:
    """Fit a reader by ridge regression, on a grid of zooms of each image around the one that the U-Net was trained at.

    Each look is taken twice, the second time in other colours: fitted on images as they are alone, a reader is further
    off on images unlike them.

    Args:
        model: in `eval` mode, on the device of `runtime`.
        images: each (H, W, 3) uint8 RGB, as networks see it, and the median diameter of its nuclei in px, above 0.
        size: the diameter that the U-Net was trained near, and at which zooms images are looked at.
        runtime: where the network runs, and how.
        recolour: changes the colours of what the network sees, (1, 3, H, W) in [0, 1]; without it each look is one.

    Raises:
        InputError: there is no image.
    """
    rows, targets, image_of = [], [], []
    for number, (image, diameter_px) in enumerate(images):
        # Halves of a step apart from image to image, so that the whole range is covered.
        offset = (number % 2) / 2 - 0.25
        for octaves in np.linspace(-size.octaves, size.octaves, size.looks) + offset:
            zoom = float(np.clip(size.object_diameter_px / diameter_px * 2**octaves, size.min_zoom, size.max_zoom))
            window, _ = cut_window(model, image, zoom, size.window_px, runtime)
            for seen in (window, recolour(window)) if recolour else (window,):
                rows.append(pool_features(model, seen, runtime))
                targets.append(math.log2(diameter_px * zoom))
                image_of.append(number)
    # Half a second, which those who only read sizes are spared.
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    if not rows:
        raise InputError("no training image has a nucleus to read a size from; check the training archive")
    features = np.stack(rows).astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0)
    std[std == 0] = 1
    # The looks at one image are alike: they stay together.
    count = image_of[-1] + 1
    split = GroupKFold(min(_FOLDS, count)).split(features, groups=image_of) if count > 1 else None
    ridge = RidgeCV(_PENALTIES, cv=split).fit((features - mean) / std, targets)
    weight = ridge.coef_ / std
    return SizeReader(weight, float(ridge.intercept_ - mean @ weight))


def read_octaves(
    model: NormalizedUNet, reader: SizeReader, image: Windows, size: SizeParams, runtime: Runtime
) -> float:
    """Return log2 of the zoom that brings an image's median nucleus to the size that networks know, as it is read.

    Args:
        model: in `eval` mode, on the device of `runtime`.
        reader: of the model.
        image: (H, W, 3) uint8 RGB, as networks see it.
        size: the wanted size, and how to look at images.
        runtime: where the network runs, and how.
    """
    lowest, highest = bound_zoom(image.shape, size)
    octaves = 0.0
    for _ in range(size.steps + 1):
        zoom = float(np.clip(2**octaves, lowest, highest))
        features = extract_features(model, image, zoom, size.window_px, runtime)
        wanted = math.log2(size.object_diameter_px * zoom) - reader.read(features)
        octaves = float(np.clip(wanted, math.log2(lowest), math.log2(highest)))
    return octaves


def bound_zoom(shape: tuple[int, ...], size: SizeParams) -> tuple[float, float]:
    """Return the lowest and the highest zoom at which an image of `shape` (H, W, ...) is seen.

    None at which the nuclei that networks know would be larger than all of the image; 1 alone where no size is known.
    """
    if size.object_diameter_px == 0:
        return 1.0, 1.0
    whole = min(1.0, size.object_diameter_px / max(shape[:2]))
    return min(max(size.min_zoom, whole), size.max_zoom), size.max_zoom


def save_reader(reader: SizeReader, path: Path) -> None:
    """Write a reader to `path` (.safetensors), atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(save({"weight": reader.weight, "bias": np.array([reader.bias])}))


def load_reader(path: Path) -> SizeReader:
    """Read what `save_reader` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        tensors = load_file(path)
        return SizeReader(tensors["weight"], float(tensors["bias"][0]))
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise InputError(
            f"{path}: no readable size reader ({shorten(error)}); run the stage `size` of this fold again"
        ) from error
