"""Augmentation on the CPU, one tile at a time, by albumentations: what has no batched form, or the whole policy.

In: a tile and its label map. Out: the same, recoloured; with `augment.backend: albumentations` also warped and cut to
the network's input, so that the device does nothing. The strengths mean the same as in `augment.augment_batch`, but for
`color_matrix`, which albumentations lacks.
"""

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.params import AugmentParams


class CpuAugment:
    """The effects of `params` that run on the CPU; callable, picklable, and quick to make where there are none."""

    def __init__(self, params: AugmentParams, crop_px: int) -> None:
        self._whole = params.backend == "albumentations"
        self.active = params.backend != "none" and (
            self._whole or params.cpu_clahe + params.cpu_jpeg + params.cpu_stain > 0
        )
        if self.active:
            self._grey, self._stained = (_compose(params, crop_px, stained) for stained in (False, True))

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


def _compose(params: AugmentParams, crop_px: int, stained: bool) -> Any:
    """Build the albumentations pipeline for grey or for stained tiles: separating stains needs colours."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version
    import albumentations as A

    steps: list[Any] = []
    if params.cpu_stain and stained:
        steps.append(A.HEStain(p=params.cpu_stain))
    if params.cpu_clahe:
        steps.append(A.CLAHE(p=params.cpu_clahe))
    if params.cpu_jpeg:
        steps.append(A.ImageCompression(quality_range=(50, 95), p=params.cpu_jpeg))
    if params.backend == "albumentations":
        steps += _whole_policy(A, params, crop_px)
    return A.Compose(steps)


def _whole_policy(A: Any, params: AugmentParams, crop_px: int) -> list[Any]:  # noqa: N803  the name all its users know
    """Return the device's policy as albumentations has it: same order, same strengths, one image at a time."""
    zoom, contrast, gamma = 2**params.log2_scale, 2**params.log2_contrast, 2**params.log2_gamma
    warp = {"border_mode": cv2.BORDER_REFLECT, "mask_interpolation": cv2.INTER_NEAREST}
    steps: list[Any] = [A.SquareSymmetry(p=1.0)] if params.flips else []
    steps.append(
        A.Affine(
            scale=(1 / zoom, zoom),
            keep_ratio=True,
            rotate=(-params.rotation_deg, params.rotation_deg),
            shear=(-params.shear_deg, params.shear_deg),
            translate_px=(-round(params.translation_px), round(params.translation_px)),
            p=1.0,
            **warp,
        )
    )
    if params.elastic.probability and params.elastic.std_px:
        # Uniform noise in +-1 deviates by 1 / sqrt(3), and a field smoothed by sigma keeps 1 / (2 sqrt(pi) sigma) of
        # that: alpha gives both back. (Normal noise would be divided by its largest value.)
        sigma = params.elastic.spacing_px / 2
        alpha = params.elastic.std_px * np.sqrt(3) * 2 * np.sqrt(np.pi) * sigma
        elastic = {"alpha": alpha, "sigma": sigma, "noise_distribution": "uniform", "p": params.elastic.probability}
        steps.append(A.ElasticTransform(**elastic, **warp))
    steps.append(A.CenterCrop(crop_px, crop_px))
    steps += [
        A.ChannelShuffle(p=params.channel_shuffle),
        A.ToGray(p=params.to_gray),
        A.RandomBrightnessContrast((-params.brightness, params.brightness), (1 / contrast - 1, contrast - 1), p=1.0),
        A.InvertImg(p=params.inversion),
        A.RandomGamma((100 / gamma, 100 * gamma), p=1.0),
    ]
    if params.blur and params.blur_sigma_px:
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, params.blur_sigma_px), p=params.blur))
    if params.noise_std:
        steps.append(A.GaussNoise(std_range=(0.0, params.noise_std), p=1.0))
    return steps
