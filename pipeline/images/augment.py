"""Augmentation on the device: one warp and one colour map per image, for a whole batch at once.

In: a batch of tiles and label maps on any device. Out: crops of them, of floats in [0, 1] and whole ids. Every
parameter is drawn per image from the generator that is passed in, on the batch's device; nothing waits for the device.

The geometry (flips, quarter turns, rotation, zoom, shear, shift, elastic deformation) is composed into one sampling
grid: the image is interpolated once and the ids, taken at the nearest pixel, stay ids. The linear part of the colours
(brightness, contrast, mixing, grey, inversion, channel order) is composed into one 3 x 4 matrix per image.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.params import AugmentParams, ElasticParams

# Weights of red, green and blue in luminance: ITU-R BT.601.
_LUMINANCE = (0.299, 0.587, 0.114)


class Draw(NamedTuple):
    """The source of randomness of one batch: its size, its device, and the generator there."""

    batch: int
    device: torch.device
    generator: torch.Generator | None

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return (B, *shape) float32, uniform in [low, high)."""
        values = torch.rand(self.batch, *shape, device=self.device, generator=self.generator)
        return low + (high - low) * values

    def normal(self, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal."""
        return torch.randn(self.batch, *shape, device=self.device, generator=self.generator)

    def sign(self) -> Tensor:
        """Return (B,) float32, 1 or -1, equally likely."""
        return self.chance(0.5) * 2 - 1

    def chance(self, probability: float) -> Tensor:
        """Return (B,) float32, 1 with the given probability, else 0."""
        return (self.uniform(0, 1) < probability).float()


def augment_batch(
    images: Tensor, label_maps: Tensor, crop_px: int, params: AugmentParams, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Warp and recolour a batch.

    Args:
        images: (B, 3, T, T) uint8, RGB.
        label_maps: (B, T, T) integer ids.
        crop_px: side of the output; the window lies in the middle of the tile, and what it reaches beyond is mirrored.
        params: strengths; a strength of 0 leaves an effect out.
        generator: of the batch's device; None draws from the device's default one.

    Returns:
        images (B, 3, C, C) float32 in [0, 1] and label_maps (B, C, C) int32.
    """
    draw = Draw(images.shape[0], images.device, generator)
    grid = _displace(_affine_grid(draw, crop_px, images.shape[-1], params), draw, params.elastic, images.shape[-1])
    warped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # Taking the nearest pixel copies it, so ids go through as bits, exact whatever they are.
    bits = label_maps.to(torch.int32).unsqueeze(1).view(torch.float32)
    ids = F.grid_sample(bits, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return _recolour(warped, draw, params), ids.view(torch.int32).squeeze(1)


def crop_batch(images: Tensor, label_maps: Tensor, crop_px: int) -> tuple[Tensor, Tensor]:
    """Cut the middle of the tiles without augmentation; arguments and results as in `augment_batch`."""
    first = (images.shape[-1] - crop_px) // 2
    window = slice(first, first + crop_px)
    return images[..., window, window].float() / 255.0, label_maps[..., window, window].to(torch.int32)


def _affine_grid(draw: Draw, crop_px: int, tile_px: int, params: AugmentParams) -> Tensor:
    """Return (B, C, C, 2) float32: where each output pixel is taken from, as (x, y) in half tiles from the middle.

    The map is zoom * rotation * shear * symmetry, so a shear is the same along both axes of the tile. Points are
    complex numbers x + iy, and the map is where it takes 1 and i: a grid is the sum of a row and a column.
    """
    turn = torch.polar(
        torch.exp2(-params.log2_scale * draw.uniform(-1, 1)), math.radians(params.rotation_deg) * draw.uniform(-1, 1)
    )
    shear = torch.tan(math.radians(params.shear_deg) * draw.uniform(-1, 1))
    along_x, along_y = turn, turn * torch.complex(shear, torch.ones_like(shear))
    if params.flips:
        # The eight symmetries of the square: two signs, and whether the axes change places.
        along_x, along_y = along_x * draw.sign(), along_y * draw.sign()
        swap = draw.chance(0.5) > 0
        along_x, along_y = torch.where(swap, along_y, along_x), torch.where(swap, along_x, along_y)
    shift = torch.view_as_complex(params.translation_px * draw.uniform(-1, 1, 2))
    axis = torch.arange(crop_px, device=draw.device) - (crop_px - 1) / 2.0
    row, column = axis * along_x[:, None], axis * along_y[:, None] + shift[:, None]
    half_tile = tile_px / 2
    return torch.view_as_real((row / half_tile)[:, None, :] + (column / half_tile)[:, :, None])


def _displace(grid: Tensor, draw: Draw, elastic: ElasticParams, tile_px: int) -> Tensor:
    """Add the paper's elastic deformation to a grid (B, C, C, 2) in half tiles.

    Displacements are drawn from a normal distribution on a coarse grid and interpolated bicubically.

    Source: Ronneberger et al. 2015, section 3.1 (a 3 x 3 grid, standard deviation 10 px).
    """
    if elastic.probability == 0 or elastic.std_px == 0:
        return grid
    batch, crop_px = grid.shape[:2]
    points = max(2, round(crop_px / elastic.spacing_px) + 1)
    strength = draw.chance(elastic.probability)[:, None, None, None] * (elastic.std_px * 2 / tile_px)
    coarse = draw.normal(2, points, points) * strength
    # Interpolation is linear and the same along both axes: a matrix (P, C), found by what it makes of the identity.
    identity = torch.eye(points, device=grid.device)[None, :, None, :]
    weights = F.interpolate(identity, size=(1, crop_px), mode="bicubic", align_corners=True)[0, :, 0]
    rows = (coarse @ weights).permute(0, 2, 3, 1).reshape(batch, points, crop_px * 2)
    return torch.baddbmm(grid.flatten(2), weights.T.expand(batch, -1, -1), rows).view_as(grid)


def _recolour(images: Tensor, draw: Draw, params: AugmentParams) -> Tensor:
    """Change the colours of images (B, 3, H, W) in [0, 255]: matrix, gamma, blur, noise, in the order of a camera.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    matrix, offset = _colour_matrix(draw, params)
    # The smallest step of 8 bits, halved: 0 ** gamma has no finite gradient and log(0) no value.
    darkest = 1 / 510 if params.log2_gamma else 0.0
    colours = torch.baddbmm(offset, matrix / 255, images.flatten(2)).clamp_(darkest, 1).view_as(images)
    if params.log2_gamma:
        gamma = torch.exp2(draw.uniform(-1, 1) * params.log2_gamma)[:, None, None, None]
        colours = colours.log2_().mul_(gamma).exp2_()  # on a CPU faster than pow_
    if params.blur:
        colours = _blur(colours, draw, params)
    if params.noise_std:
        strength = (draw.uniform(0, 1) * params.noise_std)[:, None, None, None]
        colours = colours.addcmul_(draw.normal(*colours.shape[1:]), strength).clamp_(0, 1)
    return colours


def _colour_matrix(draw: Draw, params: AugmentParams) -> tuple[Tensor, Tensor]:
    """Compose the linear effects: (B, 3, 3) and (B, 3, 1) float32, to be applied as matrix @ colour + offset."""
    device = draw.device
    eye = torch.eye(3, device=device)
    order = torch.argsort(draw.uniform(0, 1, 3), dim=1)
    shuffled = F.one_hot(order, 3).float()
    matrix = torch.lerp(eye, shuffled, draw.chance(params.channel_shuffle)[:, None, None])
    grey = torch.tensor(_LUMINANCE, device=device).expand(3, 3)
    matrix = torch.lerp(eye, grey, draw.chance(params.to_gray)[:, None, None]) @ matrix
    matrix = (eye + params.color_matrix * draw.normal(3, 3)) @ matrix
    contrast = torch.exp2(draw.uniform(-1, 1) * params.log2_contrast)[:, None, None]
    brightness = (draw.uniform(-1, 1) * params.brightness)[:, None, None]
    # Contrast turns about mid-grey, so that it does not change the mean of a balanced image.
    matrix, offset = matrix * contrast, 0.5 - 0.5 * contrast + brightness
    invert = draw.chance(params.inversion)[:, None, None]
    sign = 1 - 2 * invert
    return matrix * sign, (offset * sign + invert).expand(-1, 3, 1)


def _blur(images: Tensor, draw: Draw, params: AugmentParams) -> Tensor:
    """Blur each image (B, 3, H, W) by a Gaussian of its own width, or not at all."""
    sigma = draw.uniform(0, 1) * params.blur_sigma_px
    chosen = draw.chance(params.blur) > 0
    radius = max(1, math.ceil(2.5 * params.blur_sigma_px))
    if images.device.type == "cpu":  # here it can be asked which images are to be blurred: nothing has to be waited for
        if chosen.any():
            images[chosen] = _convolve(images[chosen], sigma[chosen], radius)
        return images
    return _convolve(images, sigma * chosen, radius)


def _convolve(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Return images (B, 3, H, W), mirrored at the edges, under Gaussians of sigma (B,) px cut off at the radius."""
    batch, channels, height, width = images.shape
    # A hundredth of a pixel leaves weight 1 at the middle: the image as it is.
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(0.01)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    padded = F.pad(images.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel[:, None, None, :], groups=batch * channels)
    return F.conv2d(rows, kernel[:, None, :, None], groups=batch * channels).view_as(images)
