"""Augmentation on the device: one warp and one colour map per image, for a whole batch at once.

In: a batch of tiles and label maps on any device. Out: crops of them, of floats in [0, 1] and whole ids. Every
parameter is drawn per image from the generator that is passed in, on the batch's device; nothing waits for the device.

The geometry is composed into one sampling grid: the image is interpolated once and the ids, taken at the nearest pixel,
stay ids. The linear part of the colours is composed into one 3 x 4 matrix per image. The effects are in `effects`;
nothing is drawn for one that `augment.effects` leaves out or sets to null.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import InputError
from pipeline.images.cpu_augment import CPU_EFFECTS
from pipeline.images.effects import EFFECTS, Draw, Effect, Warp
from pipeline.options import bind_options
from pipeline.params import AugmentParams

# (images, label_maps, crop_px, generator) -> images and label_maps, as `augment_batch` has them.
Augment = Callable[[Tensor, Tensor, int, torch.Generator | None], tuple[Tensor, Tensor]]


def build_augment(params: AugmentParams) -> Augment:
    """Return what augments a batch on the device as the section `augment` says; without its part there, `crop_batch`.

    Raises:
        InputError: an effect or one of its keys is unknown, missing or out of bounds.
    """
    bound = _bind_effects(params)
    return partial(augment_batch, bound) if params.backend == "device" else crop_batch


def build_recolour(params: AugmentParams, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Return what changes the colours and pixels of images as training does, and leaves everything where it is.

    It takes and returns (B, 3, H, W) float32 in [0, 1] on `device`. What it draws comes from a seed of its own: the
    same in every process. None where the section `augment` has the device change no colours.

    Raises:
        InputError: as of `build_augment`.
    """
    bound = [effect for effect in _bind_effects(params) if effect.kind in ("colours", "pixels")]
    if params.backend != "device" or not bound:
        return None
    generator = torch.Generator(device).manual_seed(0)

    def recolour(images: Tensor) -> Tensor:
        return _recolour(bound, Draw(len(images), device, generator), images * 255)

    return recolour


def _bind_effects(params: AugmentParams) -> list[Effect]:
    """Return the device's effects, told their options, in the order in which they come one after another."""
    effects = {name: options for name, options in params.effects.items() if options is not None}
    if unknown := effects.keys() - EFFECTS.keys() - CPU_EFFECTS.keys():
        known = ", ".join([*EFFECTS, *CPU_EFFECTS])
        raise InputError(f"params.yaml: augment.effects.{min(unknown)}: no such effect; there are {known}")
    return [
        Effect(kind, bind_options(apply, effects[name], f"augment.effects.{name}"))
        for name, (kind, apply) in EFFECTS.items()
        if name in effects
    ]


def augment_batch(
    effects: list[Effect], images: Tensor, label_maps: Tensor, crop_px: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Warp and recolour a batch.

    Args:
        effects: told all that they ask for but the batch.
        images: (B, 3, T, T) uint8, RGB.
        label_maps: (B, T, T) integer ids.
        crop_px: side of the output; the window lies in the middle of the tile, and what it reaches beyond is mirrored.
        generator: of the batch's device; None draws from the device's default one.

    Returns:
        images (B, 3, C, C) float32 in [0, 1] and label_maps (B, C, C) int32.
    """
    draw = Draw(images.shape[0], images.device, generator)
    grid = _build_grid(effects, draw, crop_px, images.shape[-1])
    warped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # Taking the nearest pixel copies it, so ids go through as bits, exact whatever they are.
    bits = label_maps.to(torch.int32).unsqueeze(1).view(torch.float32)
    ids = F.grid_sample(bits, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return _recolour(effects, draw, warped), ids.view(torch.int32).squeeze(1)


def crop_batch(
    images: Tensor, label_maps: Tensor, crop_px: int, _generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Cut the middle of the tiles without augmentation; arguments and results as in `augment_batch`."""
    first = (images.shape[-1] - crop_px) // 2
    window = slice(first, first + crop_px)
    return images[..., window, window].float() / 255.0, label_maps[..., window, window].to(torch.int32)


def _build_grid(effects: list[Effect], draw: Draw, crop_px: int, tile_px: int) -> Tensor:
    """Return (B, C, C, 2) float32: where each output pixel is taken from, as (x, y) in half tiles from the middle."""
    ones = torch.ones(draw.batch, dtype=torch.complex64, device=draw.device)
    warp = Warp(ones, ones, ones * 1j, torch.zeros_like(ones))
    for effect in effects:
        if effect.kind == "warp":
            warp = effect.apply(draw, warp)
    # A grid is the sum of a row and a column.
    axis = torch.arange(crop_px, device=draw.device) - (crop_px - 1) / 2.0
    row, column = (axis * (warp.turn * along)[:, None] for along in (warp.along_x, warp.along_y))
    column = column + warp.shift[:, None]
    half_tile = tile_px / 2
    grid = torch.view_as_real((row / half_tile)[:, None, :] + (column / half_tile)[:, :, None])
    for effect in effects:
        if effect.kind == "displacement":
            grid = effect.apply(draw, grid, tile_px)
    return grid


def _recolour(effects: list[Effect], draw: Draw, images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 255] as (B, 3, H, W) float32 in [0, 1], their colours and pixels changed."""
    colours = torch.eye(3, 4, device=draw.device).expand(draw.batch, 3, 4)
    for effect in effects:
        if effect.kind == "colours":
            colours = effect.apply(draw, colours)
    changed = torch.baddbmm(colours[..., 3:], colours[..., :3] / 255, images.flatten(2)).clamp_(0, 1).view_as(images)
    for effect in effects:
        if effect.kind == "pixels":
            changed = effect.apply(draw, changed)
    return changed
