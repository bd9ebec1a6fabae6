"""The geometry of tiled prediction along one axis: which pixels a tile reads, and how tiles are blended.

In: an axis's length, a zoom and the tile's length. Out: for each tile, indices to read and weights to write. Rows and
columns are independent, so that a tile is its row's plan times its column's.

The zoom is linear interpolation, written as a matrix per tile; a matrix folds the mirrored border in, and on the way
back the blending weights too. Most of it is 0, so on a CPU it is applied band by band. All tiles of an axis sample
one and the same grid, so that tiles of a zoomed image meet exactly as those of an image at its own size do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.unet.blocks import LengthRule

# Rows of a matrix that are multiplied at once: few, so that they touch few columns, and enough for a fast product.
_BAND_ROWS = 32

Indices = NDArray[np.int64]
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class AxisTiles:
    """The tiles along one axis. `n` tiles read `source` pixels, feed `fed`, predict `kept`, write `target` pixels.

    Attributes:
        sources: (n, source) int64, the image's pixels that a tile reads.
        read: (n, fed, source) float32, which resamples what was read; None without a zoom, where it is fed as it is.
        kept: the part of the prediction that is inside the image; everything with a zoom, whose `write` cuts it.
        firsts: the image's pixel where each tile's `target` pixels begin; never decreasing.
        fed_px: how many pixels the network sees of each tile.
        target_px: how many pixels each tile writes.
        write: (n, target) float32 blending weights; with a zoom (n, target, kept), which resamples and blends.
            Over all tiles the weights of a pixel sum to 1.
    """

    sources: Indices
    read: "Matrices | None"
    kept: slice
    firsts: list[int]
    fed_px: int
    target_px: int
    write: "Tensor | Matrices"


class Band(NamedTuple):
    """Some rows of a matrix: all that is not 0 in them lies in `columns`; `weights` (rows, columns) float32."""

    rows: slice
    columns: slice
    weights: Tensor


class Matrices:
    """`n` matrices (rows, columns) float32, each made when it is asked for: of a large image all would be 500 MB.

    Args:
        n: how many there are.
        rows: of each.
        make: returns one of them.
    """

    def __init__(self, n: int, rows: int, make: Callable[[int], NDArray[np.float32]]) -> None:
        self.n, self.rows, self._make = n, rows, make

    def __getitem__(self, which: int | Sequence[int]) -> Tensor:
        """Return the matrix (rows, columns) of one tile, or those (len, rows, columns) of several."""
        if isinstance(which, int):
            return torch.from_numpy(self._make(which))
        made = {tile: self._make(tile) for tile in set(which)}
        return torch.from_numpy(np.stack([made[tile] for tile in which]))

    def bands(self, tile: int, device: torch.device) -> list[Band]:
        """Return the matrix of a tile in parts, on the device; rows of zeros are in none.

        A GPU gets it whole: there many small products wait for the host.
        """
        matrix, bands = self._make(tile), []
        most = _BAND_ROWS if device.type == "cpu" else self.rows
        for first in range(0, self.rows, most):
            rows = slice(first, min(first + most, self.rows))
            used = np.flatnonzero(matrix[rows].any(axis=0))
            if len(used):
                columns = slice(int(used[0]), int(used[-1]) + 1)
                bands.append(Band(rows, columns, torch.from_numpy(matrix[rows, columns]).to(device)))
        return bands

    def apply_to_rows(self, tile: int, x: Tensor) -> Tensor:
        """Return the matrix of a tile times `x` (..., columns, W) float32: (..., rows, W)."""
        product = x.new_zeros(*x.shape[:-2], self.rows, x.shape[-1])
        for rows, columns, weights in self.bands(tile, x.device):
            product[..., rows, :] = weights @ x[..., columns, :]
        return product

    def apply_to_columns(self, tiles: Sequence[int], x: Tensor) -> Tensor:
        """Return `x` (B, C, H, columns) float32 times the transposed matrix of each one's tile: (B, C, H, rows)."""
        if len(set(tiles)) == 1:
            lines = x.reshape(-1, x.shape[-1])
            product = lines.new_zeros(len(lines), self.rows)
            for rows, columns, weights in self.bands(tiles[0], x.device):
                product[:, rows] = lines[:, columns] @ weights.T
            return product.view(*x.shape[:-1], self.rows)
        product = x.new_empty(*x.shape[:-1], self.rows)
        for tile in dict.fromkeys(tiles):
            own = [number for number, each in enumerate(tiles) if each == tile]
            product[own] = self.apply_to_columns([tile], x[own])
        return product


def plan_axis(length_px: int, zoom: float, tile_px: int, overlap_px: int, lengths: LengthRule) -> AxisTiles:
    """Cut an axis of `length_px` pixels, zoomed by `zoom`, into as few tiles as `tile_px` allows, evenly spread.

    Args:
        length_px: the image's height or width.
        zoom: the network sees the image this many times larger.
        tile_px: the longest prediction of one tile, after the zoom; rounded up to what the network takes.
        overlap_px: by how much neighbours overlap, after the zoom.
        lengths: what the network takes.
    """
    zoomed_px = max(1, round(length_px * zoom))
    starts, tile_px = _spread_tiles(zoomed_px, tile_px, overlap_px, lengths)
    window = _blend(starts, tile_px, zoomed_px, overlap_px)
    fed = starts[:, None] + np.arange(-lengths.margin_px, tile_px + lengths.margin_px)
    if zoom == 1:
        outside = max(0, -int(starts[0]))
        kept = slice(outside, outside + min(tile_px, length_px))
        firsts = np.maximum(starts, 0).tolist()
        write = torch.from_numpy(window[:, kept]).float()
        return AxisTiles(_mirror(fed, length_px), None, kept, firsts, fed.shape[1], write.shape[1], write)
    sources, read = _read_matrices(fed, length_px, zoomed_px)
    firsts, matrices = _write_matrices(starts, window, length_px, zoomed_px)
    return AxisTiles(sources, read, slice(None), firsts, fed.shape[1], matrices.rows, matrices)


def _spread_tiles(length_px: int, tile_px: int, overlap_px: int, lengths: LengthRule) -> tuple[Indices, int]:
    """Return where tiles start and how long their predictions are. One tile alone is centred on the image."""
    count = max(1, math.ceil((length_px - overlap_px) / (tile_px - overlap_px)))
    needed = math.ceil((length_px + (count - 1) * overlap_px) / count)
    predicted = lengths.input_for(needed) - 2 * lengths.margin_px
    if predicted >= length_px:
        return np.array([(length_px - predicted) // 2]), predicted
    return np.arange(count) * (length_px - predicted) // (count - 1), predicted


def _blend(starts: Indices, tile_px: int, length_px: int, overlap_px: int) -> Weights:
    """Return weights (n, tile_px), 0 outside the image, whose sum over the tiles is 1.

    One tile fades into the next as a raised cosine over the middle half of their overlap. The outer quarters count
    for nothing: so close to its end a tile has not seen what is beyond.
    """
    positions = starts[:, None] + np.arange(tile_px)
    inside = (positions >= 0) & (positions < length_px)
    ends = starts[:, None] + tile_px
    to_start = np.where(starts[:, None] <= 0, np.inf, positions - starts[:, None] + 0.5)  # nothing fades at a border
    to_end = np.where(ends >= length_px, np.inf, ends - positions - 0.5)
    ramp = (np.minimum(to_start, to_end) - overlap_px / 4) / max(overlap_px / 2, np.finfo(float).eps)
    weights = np.sin(np.pi / 2 * np.clip(ramp, 0, 1)) ** 2 * inside
    total = np.zeros(length_px)
    np.add.at(total, positions[inside], weights[inside])
    return weights / total[np.clip(positions, 0, length_px - 1)]


def _mirror(positions: Indices, length_px: int) -> Indices:
    """Return `positions` folded into 0 .. length_px - 1 by mirrors at both borders, however far out they are.

    The mirror stands on the border, so the outermost pixel appears twice. This works for one pixel, and mirroring
    before a zoom is mirroring after it.
    """
    folded = np.mod(positions, 2 * length_px)
    return np.minimum(folded, 2 * length_px - 1 - folded)


def _interpolate(outputs: Indices, input_px: int, output_px: int) -> tuple[Indices, Weights]:
    """Return the input pixels (m, taps) that each of `outputs` (m,) is made of, and their weights, which sum to 1.

    A triangle as wide as the coarser of the two grids: linear interpolation when enlarging, an average over the area
    when shrinking (what PIL and torch's `interpolate(antialias=True)` call bilinear).
    """
    ratio = input_px / output_px
    reach = max(1.0, ratio)
    centres = (outputs + 0.5) * ratio - 0.5
    taps = (np.floor(centres - reach) + 1).astype(np.int64)[:, None] + np.arange(math.ceil(2 * reach))
    weights = np.maximum(0.0, 1 - np.abs(taps - centres[:, None]) / reach)
    return _mirror(taps, input_px), weights / weights.sum(axis=1, keepdims=True)


def _read_matrices(fed: Indices, length_px: int, zoomed_px: int) -> tuple[Indices, Matrices]:
    """Return the pixels (n, source) that tiles read, and the matrices (n, fed, source) from there to `fed` (n, fed)."""
    parts = [_interpolate(positions, length_px, zoomed_px) for positions in fed]
    source_px = max(int(np.ptp(taps)) + 1 for taps, _ in parts)
    firsts = np.array([min(int(taps.min()), length_px - source_px) for taps, _ in parts])
    rows = np.arange(fed.shape[1])[:, None]

    def make(tile: int) -> NDArray[np.float32]:
        taps, weights = parts[tile]
        matrix = np.zeros((fed.shape[1], source_px), np.float32)
        np.add.at(matrix, (rows, taps - firsts[tile]), weights)
        return matrix

    return firsts[:, None] + np.arange(source_px), Matrices(len(fed), fed.shape[1], make)


def _write_matrices(starts: Indices, window: Weights, length_px: int, zoomed_px: int) -> tuple[list[int], Matrices]:
    """Return where tiles begin to write, and the matrices (n, target, kept) from predictions to the image's pixels."""
    taps, weights = _interpolate(np.arange(length_px), zoomed_px, length_px)
    kept_px = window.shape[1]
    touched = [np.flatnonzero(((taps >= start) & (taps < start + kept_px)).any(axis=1)) for start in starts]
    target_px = max(int(np.ptp(rows)) + 1 for rows in touched)
    firsts = [min(int(rows[0]), length_px - target_px) for rows in touched]

    def make(tile: int) -> NDArray[np.float32]:
        first, start = firsts[tile], starts[tile]
        part = taps[first : first + target_px]
        rows, which = np.nonzero((part >= start) & (part < start + kept_px))
        matrix = np.zeros((target_px, kept_px), np.float32)
        np.add.at(matrix, (rows, part[rows, which] - start), weights[first + rows, which])
        matrix *= window[tile]
        return matrix

    return firsts, Matrices(len(starts), target_px, make)
