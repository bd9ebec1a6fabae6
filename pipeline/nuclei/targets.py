"""What the network is asked for: label maps to foreground, boundary and distance, and the paper's weight map.

In: a batch of label maps on any device. Out: float32 maps on the same device. Everything has a fixed shape and looks
around by shifted views, so no value has to come back from the device.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.params import TargetsParams

# Ids stay below this.
_NO_ID = 2**24
# At d1 + d2 of this many sigmas the weight is down to exp(-4.5), 1.1 % of w0; the search for nuclei stops there.
_SIGMAS = 3

_ROWS, _COLUMNS = 1, 2  # dimensions of (B, H, W)


def encode_targets(label_map: Tensor, params: TargetsParams) -> Tensor:
    """Turn label maps into the three channels that the network learns.

    Args:
        label_map: (B, H, W) float32 or integers, 0 background, ids below 2**24.
        params: `boundary`, `boundary_px` and `distance_px`.

    Returns:
        (B, 3, H, W) float32 in [0, 1]: foreground; boundary, 1 where two nuclei lie within `boundary_px` (Chebyshev) of
        the pixel, its own counted, so in the gap between two nuclei as well (with `membrane`: 1 wherever there is no
        foreground); distance from the pixel to the nearest one
        outside its own nucleus (Euclid), over `distance_px` and cut at 1. The edge of the map is no border.
    """
    ids = label_map.to(torch.int32)
    # Cut at 1 rather than compared with 0, which is slower on a CPU (`make bench only=operators`).
    foreground = ids.clamp(max=1).float()
    boundary = 1 - foreground if params.boundary == "membrane" else _find_boundary(ids, params.boundary_px).float()
    distance = _measure_depth(ids, params.distance_px).float().sqrt_().div_(params.distance_px)
    return torch.stack([foreground, boundary, distance.mul_(foreground)], dim=1)


def _find_boundary(ids: Tensor, radius_px: int) -> Tensor:
    """Mark pixels that see two nuclei in the square of `radius_px` around them; (B, H, W) int32, 0 or 1."""
    size_px = 2 * radius_px + 1
    # The lowest id is found as the highest of its complements to 2**24, so that one pass serves both; background is 0.
    both = functional.pad(torch.stack([ids, -ids & (_NO_ID - 1)]), (radius_px,) * 4)
    highest, complement = _pool(_pool(both, size_px, -2), size_px, -1)
    return (highest + complement).sub_(_NO_ID).clamp_(0, 1)


def _pool(x: Tensor, size_px: int, dim: int) -> Tensor:
    """Return the maxima of all windows of `size_px` along a dimension, which becomes shorter by size_px - 1.

    A window is put together from two that overlap, the size doubling from step to step.
    """
    reach = 1
    while reach < size_px:
        step = min(reach, size_px - reach)
        length = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, length), x.narrow(dim, step, length))
        reach += step
    return x


def _measure_depth(ids: Tensor, radius_px: int) -> Tensor:
    """Return the squared distance to the nearest pixel of another id, at most radius_px**2; (B, H, W) small integers.

    Exact: first along columns, then the best over the columns at each side. Ids are read only to find where they
    change between neighbours. Behind such an edge distances are those of another nucleus, and do no harm: the edge
    itself is nearer than they are.

    Rows lie one after the other with a gap as wide as a look reaches, so that to look around is to shift the whole map
    in memory, and bytes hold all values up to a radius of 11: both make it several times faster on a CPU.

    Source: Saito and Toriwaki 1994, New algorithms for Euclidean distance transformation of an n-dimensional digitized
        picture, section 3 (doi:10.1016/0031-3203(94)90133-3).
    """
    batch, height, width = ids.shape
    pitch = width + radius_px - 1
    dtype = _smallest_type(2 * radius_px**2)
    below, right = (torch.zeros(batch, height, pitch, dtype=dtype, device=ids.device) for _ in range(2))
    below[:, :-1, :width] = (ids[:, 1:] ^ ids[:, :-1]).clamp_(max=1)
    right[:, :, : width - 1] = (ids[:, :, 1:] ^ ids[:, :, :-1]).clamp_(max=1)
    along_column = _distance_to_edge(below.flatten(1), pitch, radius_px)
    along_row = _distance_to_edge(right.flatten(1), 1, radius_px)
    squared = along_column * along_column
    depth = torch.minimum(squared, along_row * along_row)
    for offset in range(1, radius_px):
        _lower(depth, squared + offset**2, offset)
    return depth.view(batch, height, pitch)[:, :, :width]


def _distance_to_edge(edge: Tensor, pitch: int, limit_px: int) -> Tensor:
    """Return how many steps of `pitch` it takes to cross an edge, either way, at most `limit_px`; like `edge`.

    Args:
        edge: (B, N) integers, 1 where one lies between a pixel and the one `pitch` further on, else 0.
        pitch: step in memory from one pixel to the next.
        limit_px: the result is exact below it.
    """
    beside = edge.clone()
    beside[:, pitch:] |= edge[:, :-pitch]
    distance = limit_px - (limit_px - 1) * beside
    reach = 1
    while reach < limit_px - 1:
        _lower(distance, distance + reach, reach * pitch)
        reach *= 2
    return distance


def _lower(values: Tensor, others: Tensor, step: int) -> None:
    """Lower values (B, N), in place, to the others that lie `step` before and behind."""
    torch.minimum(values[:, step:], others[:, :-step], out=values[:, step:])
    torch.minimum(values[:, :-step], others[:, step:], out=values[:, :-step])


def _smallest_type(highest: int) -> torch.dtype:
    """Return the smallest integer type that holds 0 .. highest."""
    return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if highest <= torch.iinfo(dtype).max)


def _shift(x: Tensor, radius_px: int, dim: int, fill: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (offset, x seen that many pixels on along `dim`) for all offsets within the radius, nearest first."""
    border = (0, 0, radius_px, radius_px) if dim == _ROWS else (radius_px, radius_px)
    padded = functional.pad(x, border, value=fill)
    for offset in sorted(range(-radius_px, radius_px + 1), key=abs):
        yield offset, padded.narrow(dim, radius_px + offset, x.shape[dim])


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
    radius_px = weight_reach(sigma_px)
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


def weight_reach(sigma_px: float) -> int:
    """Return how far, in px along rows and columns, `paper_weight_map` looks for nuclei."""
    return math.ceil(_SIGMAS * sigma_px)


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
