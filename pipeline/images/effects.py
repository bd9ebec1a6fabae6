"""The effects of augmentation on the device, each a function of what it changes and of numbers drawn for each image.

In: a `Draw`, and what the effect's kind changes. Out: the same, changed.

- `warp`: a `Warp`, the map of each image from output to tile.
- `displacement`: a sampling grid (B, C, C, 2) float32 as (x, y) in half tiles from the middle, and the tile's side.
- `colours`: a matrix (B, 3, 4) float32; a colour in [0, 1] becomes its left part @ colour + its right column.
- `pixels`: images (B, 3, H, W) float32 in [0, 1], which may be changed in place.

A new effect is a function here and an entry of EFFECTS; its keyword-only parameters are its keys in `augment.effects`,
with their bounds. Strengths are drawn uniformly up to them, unless said otherwise.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.options import Natural, NotNegative, Share

Kind = Literal["warp", "displacement", "colours", "pixels"]

# Weights of red, green and blue in luminance: ITU-R BT.601.
_LUMINANCE = (0.299, 0.587, 0.114)
# The smallest step of 8 bits, halved: 0 ** gamma has no finite gradient.
_DARKEST = 1 / 510


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


class Warp(NamedTuple):
    """Where a pixel x + iy of the output is taken from: turn (x along_x + y along_y) + shift, in px from the middle.

    All (B,) complex64: points of the plane are complex numbers, and multiplying by one turns and zooms.
    """

    turn: Tensor
    along_x: Tensor
    along_y: Tensor
    shift: Tensor


def zoom(draw: Draw, warp: Warp, *, octaves: NotNegative) -> Warp:
    """Enlarge or reduce by up to `octaves` doublings."""
    return warp._replace(turn=warp.turn * torch.exp2(-octaves * draw.uniform(-1, 1)))


def rotation(draw: Draw, warp: Warp, *, deg: NotNegative) -> Warp:
    """Turn about the middle by up to `deg` either way."""
    angle = math.radians(deg) * draw.uniform(-1, 1)
    return warp._replace(turn=warp.turn * torch.polar(torch.ones_like(angle), angle))


def shear(draw: Draw, warp: Warp, *, deg: NotNegative) -> Warp:
    """Slant the y axis by up to `deg` either way."""
    slant = torch.tan(math.radians(deg) * draw.uniform(-1, 1))
    return warp._replace(along_y=warp.along_y + slant * warp.along_x)


def flips(draw: Draw, warp: Warp) -> Warp:
    """Draw one of the eight symmetries of the square: two signs, and whether the axes change places."""
    along_x, along_y = warp.along_x * draw.sign(), warp.along_y * draw.sign()
    swap = draw.chance(0.5) > 0
    return warp._replace(along_x=torch.where(swap, along_y, along_x), along_y=torch.where(swap, along_x, along_y))


def translation(draw: Draw, warp: Warp, *, px: NotNegative) -> Warp:
    """Shift by up to `px` along either axis."""
    return warp._replace(shift=warp.shift + torch.view_as_complex(px * draw.uniform(-1, 1, 2)))


def elastic(
    draw: Draw, grid: Tensor, tile_px: int, *, probability: Share, spacing_px: Natural, std_px: NotNegative
) -> Tensor:
    """Add the paper's elastic deformation to a grid (B, C, C, 2) in half tiles.

    Displacements of standard deviation `std_px` are drawn from a normal distribution on a coarse grid of about
    `spacing_px` and interpolated bicubically.

    Source: Ronneberger et al. 2015, section 3.1 (a 3 x 3 grid, standard deviation 10 px).
    """
    batch, crop_px = grid.shape[:2]
    points = max(2, round(crop_px / spacing_px) + 1)
    strength = draw.chance(probability)[:, None, None, None] * (std_px * 2 / tile_px)
    coarse = draw.normal(2, points, points) * strength
    # Interpolation is linear and the same along both axes: a matrix (P, C), found by what it makes of the identity.
    identity = torch.eye(points, device=grid.device)[None, :, None, :]
    weights = F.interpolate(identity, size=(1, crop_px), mode="bicubic", align_corners=True)[0, :, 0]
    rows = (coarse @ weights).permute(0, 2, 3, 1).reshape(batch, points, crop_px * 2)
    return torch.baddbmm(grid.flatten(2), weights.T.expand(batch, -1, -1), rows).view_as(grid)


def channel_shuffle(draw: Draw, colours: Tensor, *, probability: Share) -> Tensor:
    """Put the channels in a random order."""
    order = torch.argsort(draw.uniform(0, 1, 3), dim=1)
    shuffled = F.one_hot(order, 3).float()
    return _mix(shuffled, draw.chance(probability)) @ colours


def to_gray(draw: Draw, colours: Tensor, *, probability: Share) -> Tensor:
    """Put the luminance into all channels."""
    # Filled on the device: to send them there would wait for it.
    grey = torch.cat([torch.full((1,), weight, device=draw.device) for weight in _LUMINANCE]).expand(3, 3)
    return _mix(grey, draw.chance(probability)) @ colours


def color_matrix(draw: Draw, colours: Tensor, *, std: NotNegative) -> Tensor:
    """Mix the channels by the identity plus normal numbers of that standard deviation."""
    return (torch.eye(3, device=draw.device) + std * draw.normal(3, 3)) @ colours


def contrast(draw: Draw, colours: Tensor, *, octaves: NotNegative) -> Tensor:
    """Scale by up to `octaves` doublings either way about mid-grey: the mean of a balanced image stays."""
    factor = torch.exp2(draw.uniform(-1, 1) * octaves)[:, None, None]
    return _shift(colours * factor, 0.5 - 0.5 * factor)


def brightness(draw: Draw, colours: Tensor, *, shift: NotNegative) -> Tensor:
    """Add up to `shift` of the full range, or take it away."""
    return _shift(colours, (draw.uniform(-1, 1) * shift)[:, None, None])


def inversion(draw: Draw, colours: Tensor, *, probability: Share) -> Tensor:
    """Turn dark to light and light to dark."""
    invert = draw.chance(probability)[:, None, None]
    return _shift(colours * (1 - 2 * invert), invert)


def gamma(draw: Draw, images: Tensor, *, octaves: NotNegative) -> Tensor:
    """Raise images (B, 3, H, W) in [0, 1] to a power of up to `octaves` doublings either way."""
    power = torch.exp2(draw.uniform(-1, 1) * octaves)[:, None, None, None]
    return images.clamp_min_(_DARKEST).log2_().mul_(power).exp2_()  # on a CPU faster than pow_


def blur(draw: Draw, images: Tensor, *, probability: Share, sigma_px: NotNegative) -> Tensor:
    """Blur images (B, 3, H, W), each by a Gaussian of its own width up to `sigma_px`."""
    sigma = draw.uniform(0, 1) * sigma_px
    chosen = draw.chance(probability) > 0
    radius = max(1, math.ceil(2.5 * sigma_px))
    if images.device.type == "cpu":  # here it can be asked which images are to be blurred: nothing has to be waited for
        if chosen.any():
            images[chosen] = _convolve(images[chosen], sigma[chosen], radius)
        return images
    return _convolve(images, sigma * chosen, radius)


def noise(draw: Draw, images: Tensor, *, std: NotNegative) -> Tensor:
    """Add normal noise to images (B, 3, H, W), each of its own standard deviation up to `std` of the full range."""
    strength = (draw.uniform(0, 1) * std)[:, None, None, None]
    return images.addcmul_(draw.normal(*images.shape[1:]), strength).clamp_(0, 1)


def _mix(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Return (B, 3, 3): `matrix` where `chosen` (B,) is 1, the identity where it is 0."""
    return torch.lerp(torch.eye(3, device=chosen.device), matrix, chosen[:, None, None])


def _shift(colours: Tensor, amount: Tensor) -> Tensor:
    """Return `colours` (B, 3, 4) with `amount` (B, 1, 1) added to what they add."""
    return torch.cat([colours[..., :3], colours[..., 3:] + amount], dim=-1)


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


class Effect(NamedTuple):
    """What an effect changes, and the function that does it; it may work in place on `pixels`."""

    kind: Kind
    apply: Callable[..., Any]


# In the order in which they are drawn and come one after another: kind by kind, and the last ones as in a camera.
EFFECTS = {
    "zoom": Effect("warp", zoom),
    "rotation": Effect("warp", rotation),
    "shear": Effect("warp", shear),
    "flips": Effect("warp", flips),
    "translation": Effect("warp", translation),
    "elastic": Effect("displacement", elastic),
    "channel_shuffle": Effect("colours", channel_shuffle),
    "to_gray": Effect("colours", to_gray),
    "color_matrix": Effect("colours", color_matrix),
    "contrast": Effect("colours", contrast),
    "brightness": Effect("colours", brightness),
    "inversion": Effect("colours", inversion),
    "gamma": Effect("pixels", gamma),
    "blur": Effect("pixels", blur),
    "noise": Effect("pixels", noise),
}
