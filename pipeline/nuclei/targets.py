"""What the network is asked for: label maps to foreground, boundary and distance, and the paper's weight map.

In: a batch of label maps on any device. Out: float32 maps on the same device. Everything has a fixed shape and looks
around by shifted views, so no value has to come back from the device.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.params import TargetsParams

# Ids stay below this; float32, in which label maps are warped, holds integers exactly up to 2**24.
_NO_ID = 2**24
# At d1 + d2 of this many sigmas the weight is down to exp(-4.5), 1.1 % of w0; the search for nuclei stops there.
_SIGMAS = 3

_ROWS, _COLUMNS = 1, 2  # dimensions of (B, H, W)


def encode_targets(label_map: Tensor, params: TargetsParams) -> Tensor:
    """Turn label maps into the three channels that the network learns.

    Args:
        label_map: (B, H, W) float32 or integers, 0 background, ids below 2**24.
        params: `boundary_px` and `distance_px`.

    Returns:
        (B, 3, H, W) float32 in [0, 1]: foreground; boundary, 1 where two nuclei lie within `boundary_px` (Chebyshev) of
        the pixel, its own counted, so in the gap between two nuclei as well; distance from the pixel to the nearest one
        outside its own nucleus (Euclid), over `distance_px` and cut at 1. The edge of the map is no border.
    """
    ids = label_map.to(torch.int32)
    foreground = (ids > 0).float()
    boundary = _find_boundary(ids, params.boundary_px).float()
    distance = _measure_depth(ids, params.distance_px).float().sqrt() / params.distance_px
    return torch.stack([foreground, boundary, distance * foreground], dim=1)


def _find_boundary(ids: Tensor, radius_px: int) -> Tensor:
    """Mark pixels that see two nuclei in the square of `radius_px` around them; (B, H, W) bool."""
    highest = _pool(ids, radius_px, 0, torch.maximum)
    lowest = _pool(torch.where(ids > 0, ids, _NO_ID), radius_px, _NO_ID, torch.minimum)
    return highest > lowest


def _pool(x: Tensor, radius_px: int, fill: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine all values in the square around each pixel, one direction after the other."""
    for dim in (_ROWS, _COLUMNS):
        x = reduce(combine, (view for _, view in _shift(x, radius_px, dim, fill)))
    return x


def _shift(x: Tensor, radius_px: int, dim: int, fill: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (offset, x seen that many pixels on along `dim`) for all offsets within the radius, nearest first."""
    border = (0, 0, radius_px, radius_px) if dim == _ROWS else (radius_px, radius_px)
    padded = functional.pad(x, border, value=fill)
    for offset in sorted(range(-radius_px, radius_px + 1), key=abs):
        yield offset, padded.narrow(dim, radius_px + offset, x.shape[dim])


def _measure_depth(ids: Tensor, radius_px: int) -> Tensor:
    """Return the squared distance to the nearest pixel of another id, at most radius_px**2; (B, H, W) int32.

    Exact: first along columns, then the best over the columns at each side, where a column at which the pixel's own
    nucleus is gone counts by its offset alone.
    Source: Saito and Toriwaki 1994, New algorithms for Euclidean distance transformation of an n-dimensional digitized
        picture, section 3 (doi:10.1016/0031-3203(94)90133-3).
    """
    outside = -1
    column = torch.full_like(ids, radius_px**2)
    for offset, seen in _shift(ids, radius_px, _ROWS, outside):
        is_other = (seen != ids) & (seen != outside)
        column = torch.where(is_other, column.clamp(max=offset**2), column)
    depth = column
    columns = _shift(column, radius_px, _COLUMNS, radius_px**2)
    for (offset, seen), (_, squared) in zip(_shift(ids, radius_px, _COLUMNS, outside), columns, strict=True):
        is_own = (seen == ids) | (seen == outside)
        depth = torch.minimum(depth, squared * is_own + offset**2)
    return depth


def paper_weight_map(label_map: Tensor, w0: float, sigma_px: float) -> Tensor:
    """Weigh pixels by how narrow the gap between the two nearest nuclei is: w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the distances in px (Euclid) to the nearest pixel of the nearest and of the second nearest nucleus; d1
    is 0 on a nucleus. Exact where d1 and d2 are at most 3 sigma along rows and columns, and 0 where there is no second
    nucleus so near, an error of at most 0.012 w0. The paper's class balance w_c, the first term of its sum, is left to
    the caller.

    Args:
        label_map: (B, H, W) float32 or integers, 0 background, ids below 2**24.
        w0: the largest weight.
        sigma_px: how fast the weight falls.

    Returns:
        (B, H, W) float32 in [0, w0].

    Source: Ronneberger et al. 2015, equation 2 (arXiv:1505.04597).
    """
    ids = label_map.to(torch.int32)
    radius_px = math.ceil(_SIGMAS * sigma_px)
    nobody, far = torch.zeros_like(ids), torch.full_like(ids, _NO_ID)
    column = (nobody, far, nobody, far)
    for offset, seen in _shift(ids, radius_px, _ROWS, 0):
        column = _merge_nearest(column, seen, torch.where(seen > 0, offset**2, _NO_ID))
    nearest = (nobody, far, nobody, far)
    shifted = [_shift(x, radius_px, _COLUMNS, fill) for x, fill in zip(column, (0, _NO_ID, 0, _NO_ID), strict=True)]
    for (offset, id1), (_, d1), (_, id2), (_, d2) in zip(*shifted, strict=True):
        nearest = _merge_nearest(nearest, id1, d1 + offset**2)
        nearest = _merge_nearest(nearest, id2, d2 + offset**2)
    _, squared1, _, squared2 = nearest
    gap = squared1.float().sqrt() + squared2.float().sqrt()
    weight = w0 * torch.exp(-(gap**2) / (2 * sigma_px**2))
    return torch.where(squared2 < _NO_ID, weight, 0.0)


def _merge_nearest(
    nearest: tuple[Tensor, Tensor, Tensor, Tensor], ids: Tensor, squared: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take one more candidate into (id1, d1, id2, d2), the two nearest nuclei that differ, by squared distance."""
    id1, d1, id2, d2 = nearest
    is_first = squared < d1
    # The old first becomes second, unless the candidate is the same nucleus, only nearer.
    is_moved = is_first & (ids != id1)
    is_second = ~is_first & (squared < d2) & (ids != id1)
    id2 = torch.where(is_moved, id1, torch.where(is_second, ids, id2))
    d2 = torch.where(is_moved, d1, torch.where(is_second, squared, d2))
    return torch.where(is_first, ids, id1), torch.minimum(d1, squared), id2, d2
