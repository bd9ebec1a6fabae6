"""The packed store to training batches: which image is drawn, which tile is cut, what is done to it on the CPU.

In: a prepared split's pack and table. Out: tiles `(T, T, 3)` uint8 and their label maps `(T, T)` int32, keyed by a
running number: sample n of a run is the same whoever asks for it, in whichever worker and after whatever restart.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import InputError
from pipeline.images.contrast import apply_contrast, find_contrast
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.store import Pack
from pipeline.params import AugmentParams, ContrastParams, TrainParams

# Zooms outside these bounds leave too little of an image in a tile, or too little detail.
_ZOOM_BOUNDS = (0.25, 4.0)


def sampling_weights(image_types: pd.Series, balance: float) -> NDArray[np.float64]:
    """Return (n,) probabilities of drawing each image: between all images alike (0) and all types alike (1).

    An image's weight is its type's frequency to the power of minus `balance`.
    """
    frequency = image_types.map(image_types.value_counts(normalize=True)).to_numpy(np.float64)
    weights = frequency**-balance
    return weights / weights.sum()


class TileDataset(Dataset[tuple[Tensor, Tensor]]):
    """Random tiles of the training images of one fold; item n depends on (seed, n) alone.

    Args:
        pack: the prepared split's images and label maps.
        table: its rows of the images to draw from; `image_type` and `median_area_px` are read.
        train: tile size, sampling balance and nucleus size.
        contrast: how each image's brightness is stretched.
        augment: the effects that run on the CPU.
        seed: of this fold.
        first, last: the running numbers that this data set covers; item 0 is sample `first`.

    Raises:
        InputError: the table is empty.
    """

    def __init__(
        self,
        pack: Pack,
        table: pd.DataFrame,
        train: TrainParams,
        contrast: ContrastParams,
        augment: AugmentParams,
        seed: int,
        first: int,
        last: int,
    ) -> None:
        if table.empty:
            raise InputError("no images to train on; check folds.csv")
        self._pack = pack
        self._ids = table["image_id"].tolist()
        self._cumulative = np.cumsum(sampling_weights(table["image_type"], train.balance_types))
        self._zooms = base_zooms(table["median_area_px"].to_numpy(np.float64), train.object_diameter_px)
        self.tile_px = train.tile_px
        self._tables = [find_contrast(pack[f"{image_id}.image"], contrast) for image_id in self._ids]
        self._effects = CpuAugment(augment, train.crop_px)
        self._seed, self._first, self._last = seed, first, last

    @property
    def pixels(self) -> int:
        """How many pixels `whole_images` has in all."""
        areas = [self._pack[f"{image_id}.label_map"].size for image_id in self._ids]
        return round(float(np.sum(areas * self._zooms**2)))

    @property
    def has_effects(self) -> bool:
        """Whether tiles pass through effects on the CPU."""
        return self._effects.active

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """Return a tile (T, T, 3) uint8 and its label map (T, T) int32; (C, C) where the CPU does all augmentation."""
        index, rng = self.draw_image(item)
        image_id = self._ids[index]
        image, label_map = cut_tile(
            self._pack[f"{image_id}.image"],
            self._pack[f"{image_id}.label_map"],
            self.tile_px,
            float(self._zooms[index]),
            rng,
        )
        image = apply_contrast(image, self._tables[index])
        image, label_map = self._effects(image, label_map, rng)
        return torch.from_numpy(image), torch.from_numpy(label_map)

    def draw_image(self, item: int) -> tuple[int, np.random.Generator]:
        """Return which image sample `item` is of, and the generator of all else about it."""
        rng = np.random.default_rng((self._seed, self._first + item))
        return min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(self._ids) - 1), rng

    def name_image(self, item: int) -> str:
        """Return the id of the image that sample `item` is of."""
        return str(self._ids[self.draw_image(item)[0]])

    def whole_images(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
        """Yield each image (H, W, 3) uint8 and its label map (H, W) int32, stretched, at the zoom of its tiles."""
        for image_id, zoom, levels in zip(self._ids, self._zooms, self._tables, strict=True):
            pair = zoom_pair(self._pack[f"{image_id}.image"], self._pack[f"{image_id}.label_map"], float(zoom))
            yield apply_contrast(pair[0], levels), pair[1]


def base_zooms(median_area_px: NDArray[np.float64], diameter_px: float) -> NDArray[np.float64]:
    """Return (n,) zooms that bring nuclei of the given median areas to one diameter; 1 where 0 is asked or known."""
    if diameter_px == 0:
        return np.ones_like(median_area_px)
    diameters = 2 * np.sqrt(np.maximum(median_area_px, 1) / np.pi)
    zooms = np.where(median_area_px > 0, diameter_px / diameters, 1.0)
    return zooms.clip(*_ZOOM_BOUNDS)


def cut_tile(
    image: NDArray[np.uint8], label_map: NDArray[np.uint16], tile_px: int, zoom: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Cut a random tile at a zoom; where the image ends, it is mirrored.

    Args:
        image: (H, W, 3) uint8.
        label_map: (H, W) integer.
        tile_px: side of the tile.
        zoom: output px per input px; smaller than 1 averages areas.

    Returns:
        (T, T, 3) uint8 and (T, T) int32.
    """
    source_px = max(1, round(tile_px / zoom))
    top, left = draw_corner(image.shape[:2], source_px, rng)
    window = np.s_[top : top + source_px, left : left + source_px]
    tile, ids = zoom_pair(image[window], label_map[window], zoom)
    return _mirror_to(tile[:tile_px, :tile_px], tile_px), _mirror_to(ids[:tile_px, :tile_px], tile_px)


def draw_corner(shape: tuple[int, ...], source_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return the top and left of a random square of `source_px` in `shape` (H, W); 0 along a side that is shorter."""
    top, left = (int(rng.integers(0, max(0, size - source_px) + 1)) for size in shape)
    return top, left


def zoom_pair(
    image: NDArray[np.uint8], label_map: NDArray[np.uint16], zoom: float
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return image (H, W, 3) uint8 and label_map (H, W) int32 at `zoom` output px per px; below 1 by mean areas."""
    tile: NDArray[Any] = image
    ids: NDArray[Any] = label_map.astype(np.int32)
    if zoom != 1.0:
        size = (max(1, round(tile.shape[1] * zoom)), max(1, round(tile.shape[0] * zoom)))
        tile = cv2.resize(tile, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return tile, ids


def _mirror_to(array: NDArray[Any], size_px: int) -> NDArray[Any]:
    """Return `array` (H, W[, C]) in the middle of a square of `size_px`, mirrored outwards as often as it takes."""
    (top, bottom), (left, right) = (((size_px - n) // 2, (size_px - n + 1) // 2) for n in array.shape[:2])
    return np.asarray(cv2.copyMakeBorder(np.ascontiguousarray(array), top, bottom, left, right, cv2.BORDER_REFLECT))


def make_loader(dataset: TileDataset, batch: int, workers: int, pin: bool) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Return a loader of batches (B, T, T, 3) uint8 and (B, T, T) int32 in the order of the running numbers."""
    return DataLoader(
        dataset,
        batch_size=batch,
        shuffle=False,
        num_workers=workers,
        pin_memory=pin,
        drop_last=True,
        persistent_workers=False,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
    )
