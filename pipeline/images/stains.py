"""Effects of augmentation that are about stained tissue, in optical densities: -log of the light that comes through.

In: a `Draw` and images (B, 3, H, W) float32 in [0, 1], RGB. Out: the same, changed; entries of EFFECTS in `effects`.
Densities of stains add up where light does not.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.images.draw import DARKEST, LUMINANCE, Draw, fill
from pipeline.params import NotNegative, Share

# Optical densities of red, green and blue, and how far the stains that are drawn lie from them.
_EOSIN, _HAEMATOXYLIN = (0.07, 0.99, 0.11), (0.65, 0.70, 0.29)
_SPREAD = (0.5, 0.25)
# The mean of a stretched image of fluorescence is below it, that of a light one above.
_DARK_MEAN = 0.5
# Dim nuclei take up stain too; but no image is brightened more than to three times, for there may be noise alone in it.
_LEAST_LIGHT = 1 / 3
# Points along a side of the fields that the background is made of.
_FIELDS = (4, 10, 40)


def synthetic_stain(draw: Draw, images: Tensor, *, probability: Share) -> Tensor:
    """Recolour dark images (B, 3, H, W) in [0, 1] as stained tissue: the brighter a pixel was, the more stain it has.

    One stain is taken up by the nuclei, another by what lies around them, and light is absorbed by both. Around them
    lie bodies of cells and fibres, coarse or fine, with sharp edges or none, and gaps. The colours are drawn around
    those of eosin and haematoxylin, the background's further away. The masks stay right.

    Source: for the absorbances of the two stains (optical densities of red, green and blue): Ruifrok & Johnston,
        Analytical and Quantitative Cytology and Histology 23 (2001) 291.
    """
    chosen = draw.chance(probability) * (images.mean(dim=(1, 2, 3)) < _DARK_MEAN) > 0
    fields = [draw.normal(1, points, points) for points in _FIELDS]
    return _change(_stain, chosen, images, draw.normal(2, 3), draw.uniform(0, 1, 8), *fields)


def _stain(images: Tensor, colours: Tensor, shares: Tensor, wide: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
    """Return dark images (B, 3, H, W) stained.

    Args:
        images: in [0, 1].
        colours: (B, 2, 3) standard normal: how the stains of background and nuclei differ from the usual ones.
        shares: (B, 8) uniform in [0, 1): how much of what there is.
        wide, middle, fine: (B, 1, N, N) standard normal: how the background varies.
    """
    known = torch.stack([fill(_EOSIN, images.device), fill(_HAEMATOXYLIN, images.device)])
    stains = F.normalize((known + fill(_SPREAD, images.device)[:, None] * colours).abs(), dim=2)[..., None, None]
    tissue, nuclei, thinned, texture, bend, sharpness, cover, coarseness = shares[..., None, None, None].unbind(1)
    wide, middle, fine = (F.interpolate(field, images.shape[2:], mode="bicubic") for field in (wide, middle, fine))
    # Bodies and fibres are where a rough field is above a level; the sharper, the steeper it ends there.
    rough = torch.lerp(middle, wide, coarseness)
    bodies = torch.sigmoid((rough + 2 * cover - 1) * torch.exp2(1 + 4 * sharpness))
    bright = (images * fill(LUMINANCE, images.device)[:, None, None]).sum(dim=1, keepdim=True)
    bright = bright / bright.amax(dim=(2, 3), keepdim=True).clamp_min(_LEAST_LIGHT)
    amount = bright.clamp_min(DARKEST) ** torch.exp2(2 * bend - 1.5)
    # Where nuclei are there is less of what lies around them.
    around = tissue * (0.15 + bodies) * (1 - thinned * amount)
    around = around * (1 + 0.3 * texture * (middle + fine)).clamp_min(0)
    inside = (0.6 + 1.4 * nuclei) * amount * (1 + 0.2 * texture * fine).clamp_min(0)
    return torch.exp(-(around * stains[:, 0] + inside * stains[:, 1]))


def density(draw: Draw, images: Tensor, *, probability: Share, mixing: NotNegative, octaves: NotNegative) -> Tensor:
    """Change the stains of light images (B, 3, H, W) in [0, 1]: mix and scale their optical densities.

    Densities, -log of the light, are multiplied by a matrix whose entries differ from the identity's by up to `mixing`,
    and by a strength of up to `octaves` doublings either way.

    Source: Tellez et al., Medical Image Analysis 58 (2019) 101544, who do so in the stains' own coordinates; Weigert &
        Schmidt, Nuclei instance segmentation and classification in histopathology images with StarDist (2022).
    """
    chosen = draw.chance(probability) * (images.mean(dim=(1, 2, 3)) >= _DARK_MEAN) > 0
    mix = torch.eye(3, device=draw.device) + mixing * draw.uniform(-1, 1, 3, 3)
    mix = mix * torch.exp2(octaves * draw.uniform(-1, 1))[:, None, None]
    return _change(_mix_densities, chosen, images, mix)


def _mix_densities(images: Tensor, mix: Tensor) -> Tensor:
    """Return images (B, 3, H, W) whose densities are multiplied by `mix` (B, 3, 3)."""
    densities = -images.clamp_min(DARKEST).log().flatten(2)
    return torch.exp(-(mix @ densities)).clamp_(0, 1).view_as(images)


def _change(change: Callable[..., Tensor], chosen: Tensor, images: Tensor, *draws: Tensor) -> Tensor:
    """Return images (B, 3, H, W), those of `chosen` (B,) changed by what was drawn for each."""
    if images.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], change(images, *draws), images)
    if chosen.any():  # here it can be asked: nothing has to be waited for
        images[chosen] = change(images[chosen], *(part[chosen] for part in draws))
    return images
