"""Row 3: the device augmentation, on the CPU as the device, against kornia's and albumentations' with the same effects.

Flips, affine, elastic, brightness, contrast, mixed colours and noise on a batch of tiles and label maps, each with
its own draws; ids stay whole on all sides.
"""

from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from kornia.constants import DataKey

from pipeline.compose import compose_params
from pipeline.images.augment import build_augment
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, TrainingImages, make_loader
from pipeline.params import Params
from pipeline.unet.runtime import start_runtime
from tests.benchmarks.harness import Report, Row, Setting, compare_row, format_seconds, time_pair

BATCH, TILE_PX = 16, 256


def make_params(backend: str) -> Params:
    """Return parameters whose effects all three sides have, and always apply."""
    off = ["gamma", "inversion", "blur"]
    effects = [f"augment.effects.{name}=null" for name in off] + ["augment.effects.elastic.probability=1.0"]
    sizes = [f"train.batch={BATCH}", *(f"train.{side}={TILE_PX}" for side in ("tile_px", "crop_px", "start_crop_px"))]
    return compose_params(["train=cpu", f"augment.backend={backend}", *effects, *sizes])


def kornia_policy(params: Params) -> Any:
    """Return kornia's sequence of the same effects; its elastic field is weaker, which takes as long."""
    effects = {name: options for name, options in params.augment.effects.items() if options is not None}
    zoom, contrast = 2 ** effects["zoom"]["octaves"], 2 ** effects["contrast"]["octaves"]
    spread = (2 * effects["elastic"]["std_px"] / TILE_PX,) * 2
    sigma = (effects["elastic"]["spacing_px"] / 2,) * 2
    brightness = effects["brightness"]["shift"]
    return K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomAffine(
            degrees=effects["rotation"]["deg"],
            scale=(1 / zoom, zoom),
            shear=effects["shear"]["deg"],
            padding_mode="reflection",
            p=1.0,
        ),
        K.RandomElasticTransform(sigma=sigma, alpha=spread, padding_mode="reflection", p=1.0),
        K.ColorJitter(brightness=brightness, contrast=(1 / contrast, contrast), saturation=0.1, p=1.0),
        K.RandomGaussianNoise(std=effects["noise"]["std"], p=1.0),
        data_keys=["input", "mask"],
        extra_args={DataKey.MASK: {"resample": "NEAREST", "align_corners": False}},
    )


def run(setting: Setting) -> Report:
    params = make_params("device")
    start_runtime(params.runtime)
    learnt = TrainingImages(setting.split, params.contrast, params.size, params.train.balance)
    dataset = TileDataset(learnt, TILE_PX, CpuAugment(params.augment, TILE_PX), 0, 0, BATCH)
    tiles, ids = next(iter(make_loader(dataset, BATCH, 0, False)))
    images, generator = tiles.permute(0, 3, 1, 2).contiguous(), torch.Generator().manual_seed(0)
    policy, augment = kornia_policy(params), build_augment(params.augment)
    effects = CpuAugment(make_params("albumentations").augment, TILE_PX)

    def ours() -> Any:
        return augment(images, ids, TILE_PX, generator)

    def by_kornia() -> Any:
        return policy(images.float() / 255, ids[:, None].float())

    rng = np.random.default_rng(0)

    def by_albumentations() -> Any:
        pairs = [effects(tile.numpy(), label_map.numpy(), rng) for tile, label_map in zip(tiles, ids, strict=True)]
        return torch.stack([torch.from_numpy(tile).float() / 255 for tile, _ in pairs]), pairs

    for name, (_, found) in {"ours": ours(), "kornia": by_kornia()}.items():
        if not torch.isin(found, torch.unique(ids)).all():
            raise AssertionError(f"{name} makes ids that were not there")
    what = f"augmentation of {BATCH} tiles of {TILE_PX} px with label maps, CPU device"
    against_kornia = time_pair(ours, by_kornia, 2 * setting.runs)
    against_albumentations = time_pair(ours, by_albumentations, setting.runs)
    copied = torch.empty_like(images, dtype=torch.float32)
    copying = time_pair(ours, lambda: copied.copy_(images), setting.runs)
    note = f"to convert the same images to float32, one pass over memory, takes {format_seconds(min(copying.theirs))}"
    rows: list[Row] = [
        compare_row("3a", what, "kornia's AugmentationSequential", ">= 4x", against_kornia, note),
        compare_row("3b", what, "albumentations, tile by tile, one thread", "printed", against_albumentations),
    ]
    return Report(rows)
