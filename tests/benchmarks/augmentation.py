"""Row 3: the device augmentation, on the CPU as the device, against kornia's and albumentations' with the same effects.

Flips, affine, elastic, brightness, contrast, mixed colours and noise on a batch of tiles and label maps, each with
its own draws; ids stay whole on all sides.
"""

from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from kornia.constants import DataKey

from pipeline.images.augment import augment_batch
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, make_loader
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.params import Params
from pipeline.unet.runtime import configure_torch
from tests.benchmarks.harness import Report, Row, Setting, compare_row, compose_params, format_seconds, time_pair

BATCH, TILE_PX = 16, 256


def make_params(backend: str) -> Params:
    """Return parameters whose effects all three sides have, and always apply."""
    off = ["log2_gamma", "inversion", "channel_shuffle", "to_gray", "blur"]
    strengths = [f"augment.{name}=0.0" for name in off] + ["augment.elastic.probability=1.0"]
    sizes = [f"train.batch={BATCH}", *(f"train.{side}={TILE_PX}" for side in ("tile_px", "crop_px", "start_crop_px"))]
    return compose_params(["train=cpu", f"augment.backend={backend}", *strengths, *sizes])


def kornia_policy(params: Params) -> Any:
    """Return kornia's sequence of the same effects; its elastic field is weaker, which takes as long."""
    augment = params.augment
    zoom, contrast = 2**augment.log2_scale, 2**augment.log2_contrast
    spread = (2 * augment.elastic.std_px / TILE_PX,) * 2
    sigma = (augment.elastic.spacing_px / 2,) * 2
    return K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomAffine(
            degrees=augment.rotation_deg,
            scale=(1 / zoom, zoom),
            shear=augment.shear_deg,
            padding_mode="reflection",
            p=1.0,
        ),
        K.RandomElasticTransform(sigma=sigma, alpha=spread, padding_mode="reflection", p=1.0),
        K.ColorJitter(brightness=augment.brightness, contrast=(1 / contrast, contrast), saturation=0.1, p=1.0),
        K.RandomGaussianNoise(std=augment.noise_std, p=1.0),
        data_keys=["input", "mask"],
        extra_args={DataKey.MASK: {"resample": "NEAREST", "align_corners": False}},
    )


def run(setting: Setting) -> Report:
    params = make_params("device")
    configure_torch(params.train.threads)
    prepared, train = setting.prepared / "train", params.train
    dataset = TileDataset(
        Pack(prepared / "images.npz"), read_table(prepared), train, params.contrast, params.augment, 0, 0, BATCH
    )
    tiles, ids = next(iter(make_loader(dataset, BATCH, 0, False)))
    images, generator = tiles.permute(0, 3, 1, 2).contiguous(), torch.Generator().manual_seed(0)
    policy = kornia_policy(params)
    effects = CpuAugment(make_params("albumentations").augment, TILE_PX)

    def ours() -> Any:
        return augment_batch(images, ids, TILE_PX, params.augment, generator)

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
