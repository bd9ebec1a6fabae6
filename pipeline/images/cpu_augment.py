"""Augmentation on the CPU, one tile at a time, by albumentations: what has no batched form, or the whole policy.

In: a tile and its label map. Out: the same, recoloured; with `augment.backend: albumentations` also warped and cut to
the network's input, so that the device does nothing. Keys mean there what they mean in `effects`.

A new effect of the CPU is a function and an entry of CPU_EFFECTS. An effect of `effects` has a counterpart here, where
albumentations has one: an entry of WARPS or COLOURS.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.options import Natural, NotNegative, Share, bind_options
from pipeline.params import AugmentParams

# What albumentations lacks and the strong group has: its policy goes without, silently.
WITHOUT_COUNTERPART = frozenset({"color_matrix"})
# Which of CPU_EFFECTS is left out for grey tiles: separating stains needs colours.
_NEEDS_COLOUR = frozenset({"stain"})
_MIRRORED = {"border_mode": cv2.BORDER_REFLECT, "mask_interpolation": cv2.INTER_NEAREST}


class Counterpart(NamedTuple):
    """The name of a class of albumentations, and what finds its arguments; entries of one class share one instance."""

    transform: str
    arguments: Callable[..., dict[str, Any]]


def _with_probability(*, probability: Share) -> dict[str, Any]:
    return {"p": probability}


def _jpeg(*, probability: Share) -> dict[str, Any]:
    return {"quality_range": (50, 95), "p": probability}


def _flips() -> dict[str, Any]:
    return {"p": 1.0}


def _zoom(*, octaves: NotNegative) -> dict[str, Any]:
    return {"scale": (1 / 2**octaves, 2**octaves), "keep_ratio": True}


def _rotation(*, deg: NotNegative) -> dict[str, Any]:
    return {"rotate": (-deg, deg)}


def _shear(*, deg: NotNegative) -> dict[str, Any]:
    return {"shear": (-deg, deg)}


def _translation(*, px: NotNegative) -> dict[str, Any]:
    return {"translate_px": (-round(px), round(px))}


def _elastic(*, probability: Share, spacing_px: Natural, std_px: NotNegative) -> dict[str, Any]:
    # Uniform noise in +-1 deviates by 1 / sqrt(3), and a field smoothed by sigma keeps 1 / (2 sqrt(pi) sigma) of
    # that: alpha gives both back. (Normal noise would be divided by its largest value.)
    sigma = spacing_px / 2
    alpha = std_px * np.sqrt(3) * 2 * np.sqrt(np.pi) * sigma
    return {"alpha": alpha, "sigma": sigma, "noise_distribution": "uniform", "p": probability} | _MIRRORED


def _contrast(*, octaves: NotNegative) -> dict[str, Any]:
    return {"contrast_limit": (1 / 2**octaves - 1, 2**octaves - 1)}


def _brightness(*, shift: NotNegative) -> dict[str, Any]:
    return {"brightness_limit": (-shift, shift)}


def _gamma(*, octaves: NotNegative) -> dict[str, Any]:
    return {"gamma_limit": (100 / 2**octaves, 100 * 2**octaves), "p": 1.0}


def _blur(*, probability: Share, sigma_px: NotNegative) -> dict[str, Any]:
    return {"blur_limit": 0, "sigma_limit": (0.0, sigma_px), "p": probability}


def _noise(*, std: NotNegative) -> dict[str, Any]:
    return {"std_range": (0.0, std), "p": 1.0}


# Each in the order in which effects come one after another.
CPU_EFFECTS = {
    "stain": Counterpart("HEStain", _with_probability),
    "clahe": Counterpart("CLAHE", _with_probability),
    "jpeg": Counterpart("ImageCompression", _jpeg),
}
WARPS = {
    "flips": Counterpart("SquareSymmetry", _flips),
    "zoom": Counterpart("Affine", _zoom),
    "rotation": Counterpart("Affine", _rotation),
    "shear": Counterpart("Affine", _shear),
    "translation": Counterpart("Affine", _translation),
    "elastic": Counterpart("ElasticTransform", _elastic),
}
COLOURS = {
    "channel_shuffle": Counterpart("ChannelShuffle", _with_probability),
    "to_gray": Counterpart("ToGray", _with_probability),
    "contrast": Counterpart("RandomBrightnessContrast", _contrast),
    "brightness": Counterpart("RandomBrightnessContrast", _brightness),
    "inversion": Counterpart("InvertImg", _with_probability),
    "gamma": Counterpart("RandomGamma", _gamma),
    "blur": Counterpart("GaussianBlur", _blur),
    "noise": Counterpart("GaussNoise", _noise),
}
# What entries that share one instance do not say; their own arguments go over it.
_SHARED: dict[str, dict[str, Any]] = {
    "Affine": {"scale": (1.0, 1.0), "rotate": 0.0, "shear": 0.0, "translate_px": 0, "p": 1.0} | _MIRRORED,
    "RandomBrightnessContrast": {"brightness_limit": (0.0, 0.0), "contrast_limit": (0.0, 0.0), "p": 1.0},
}


class CpuAugment:
    """The effects of the section `augment` that run on the CPU; callable, picklable, and quick to make without any.

    Args:
        params: the section.
        crop_px: side that tiles are cut to where albumentations runs the whole policy.

    Raises:
        InputError: a key of an effect is unknown, missing or out of bounds, or albumentations lacks an effect.
    """

    def __init__(self, params: AugmentParams, crop_px: int) -> None:
        whole = params.backend == "albumentations"
        effects = {name: options for name, options in params.effects.items() if options is not None}
        lacking = effects.keys() - CPU_EFFECTS.keys() - WARPS.keys() - COLOURS.keys() - WITHOUT_COUNTERPART
        if whole and lacking:
            raise InputError(
                f"params.yaml: augment.effects.{min(lacking)}: albumentations lacks it; set it to null, or "
                "augment.backend to device"
            )
        self.active = whole or (params.backend is not None and bool(effects.keys() & CPU_EFFECTS.keys()))
        if self.active:
            crop = crop_px if whole else None
            self._stained = _compose(effects, crop)
            self._grey = _compose({name: effects[name] for name in effects.keys() - _NEEDS_COLOUR}, crop)

    def __call__(
        self, image: NDArray[np.uint8], label_map: NDArray[np.int32], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Augment image (T, T, 3) uint8 and label_map (T, T) int32, with all randomness drawn from `rng`.

        Returns:
            both of side T, or of side crop_px where albumentations runs the whole policy.
        """
        if not self.active:
            return image, label_map
        grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())
        transform = self._grey if grey else self._stained
        transform.set_random_seed(int(rng.integers(2**31)))
        # OpenCV warps no int32; float32 holds every id below 2 ** 24.
        result = transform(image=image, mask=label_map.astype(np.float32))
        return np.ascontiguousarray(result["image"]), result["mask"].astype(np.int32)


def _compose(effects: dict[str, dict[str, float]], crop_px: int | None) -> Any:
    """Return the pipeline of albumentations; without a crop only that of CPU_EFFECTS."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version
    import albumentations as A

    steps = _build_steps(A, CPU_EFFECTS, effects)
    if crop_px is not None:
        steps += _build_steps(A, WARPS, effects)
        steps.append(A.CenterCrop(crop_px, crop_px))
        steps += _build_steps(A, COLOURS, effects)
    return A.Compose(steps)


def _build_steps(A: Any, table: dict[str, Counterpart], effects: dict[str, dict[str, float]]) -> list[Any]:  # noqa: N803
    """Return instances of the transforms that `effects` use, in the order of `table`."""
    arguments: dict[str, dict[str, Any]] = {}
    for name, (transform, find_arguments) in table.items():
        if name in effects:
            found = bind_options(find_arguments, effects[name], f"augment.effects.{name}")()
            arguments[transform] = arguments.get(transform, _SHARED.get(transform, {})) | found
    return [getattr(A, transform)(**options) for transform, options in arguments.items()]
