"""A prepared split to training batches: which image is drawn, which tile is cut, what is done to it on the CPU.

In: the images to learn from. Out: tiles `(T, T, 3)` uint8 and their label maps `(T, T)` int32, keyed by a
running number: sample n of a run is the same whoever asks for it, in whichever worker and after whatever restart.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.diameter import zooms_to_size
from pipeline.errors import InputError
from pipeline.images.contrast import Contrast, apply_contrast, find_contrast
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.splits import PreparedSplit, Window
from pipeline.images.table import name_acquisitions
from pipeline.parallel import start_worker
from pipeline.params import ContrastParams, SizeParams


def sampling_weights(table: pd.DataFrame, balance: float) -> NDArray[np.float64]:
    """Return (n,) probabilities of drawing each image.

    With a balance of 0 all images are alike, and with 1 all types, and within a type all acquisitions. An image's
    weight is the frequency of its type to the power of minus `balance`, times that of its acquisition over the mean of
    this in its type, times the weight of its source.

    Args:
        table: image_type, height, width, and weight (of the source), above 0; a row per image.
        balance: of types, and of acquisitions within a type.
    """
    types = table["image_type"]
    weights = _rarity(types) ** balance
    within = pd.Series(_rarity(name_acquisitions(table)) ** balance, table.index)
    weights *= (within / within.groupby(types).transform("mean")).to_numpy(np.float64)
    weights *= table["weight"].to_numpy(np.float64)
    return weights / weights.sum()


def _rarity(kinds: pd.Series) -> NDArray[np.float64]:
    """Return how many images there are for one of each image's kind."""
    return 1 / kinds.map(kinds.value_counts(normalize=True)).to_numpy(np.float64)


class TrainingImages:
    """The images that a network learns from, and all that is found out about them once, before the first step.

    Args:
        split: the images, labelled.
        contrast: how each one is shown to the network.
        size: the diameter that nuclei are brought to.
        balance: between drawing all images alike (0) and all acquisitions (1), as `sampling_weights` does.

    Raises:
        InputError: there is no image.
    """

    def __init__(self, split: PreparedSplit, contrast: ContrastParams, size: SizeParams, balance: float) -> None:
        if not len(split):
            raise InputError("no images to train on; check folds.csv")
        self._split, self._ids = split, split.image_ids
        self._shapes = [*split.shapes().values()]
        self._cumulative = np.cumsum(sampling_weights(split.table, balance))
        self._zooms = zooms_to_size(split.diameters_px, size)
        self._contrasts = [find_contrast(image, contrast) for _, image in split.images()]

    @property
    def pixels(self) -> int:
        """How many pixels `whole_images` has in all."""
        areas = (self._split.table["height"] * self._split.table["width"]).to_numpy(np.float64)
        return round(float(np.sum(areas * self._zooms**2)))

    def draw_image(self, seed: int, sample: int) -> tuple[int, np.random.Generator]:
        """Return which image sample number `sample` is of, and the generator of all else about it."""
        rng = np.random.default_rng((seed, sample))
        return min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(self._ids) - 1), rng

    def name_images(self, seed: int, samples: Iterable[int]) -> list[str]:
        """Return the ids of the images that some samples are of."""
        return [self._ids[self.draw_image(seed, sample)[0]] for sample in samples]

    def cut(
        self, seed: int, sample: int, tile_px: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32], np.random.Generator]:
        """Return the tile (T, T, 3) of a sample, its label map (T, T), and the generator of what is left."""
        index, rng = self.draw_image(seed, sample)
        image_id, zoom = self._ids[index], float(self._zooms[index])
        window = draw_window(self._shapes[index], tile_px, zoom, rng)
        image, label_map = self._split.image(image_id, window), self._split.label_map(image_id, window)
        return *make_tile(image, label_map, tile_px, zoom, self._contrasts[index]), rng

    def whole_images(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
        """Yield each image (H, W, 3) uint8, as networks see it, and its label map (H, W) int32, both zoomed."""
        for image_id, zoom, contrast in zip(self._ids, self._zooms, self._contrasts, strict=True):
            seen = apply_contrast(self._split.image(image_id), contrast)
            yield zoom_pair(seen, self._split.label_map(image_id), float(zoom))


class TileDataset(Dataset[tuple[Tensor, Tensor]]):
    """Random tiles of training images; item n is sample `first` + n and depends on that and the seed alone.

    Args:
        images: what tiles are cut from.
        tile_px: their side.
        effects: what is done to them on the CPU.
        seed: of this fold.
        first, last: the running numbers that this data set covers.
    """

    def __init__(
        self, images: TrainingImages, tile_px: int, effects: CpuAugment, seed: int, first: int, last: int
    ) -> None:
        self._images, self._tile_px, self._effects = images, tile_px, effects
        self._seed, self._first, self._last = seed, first, last

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """Return a tile (T, T, 3) uint8 and its label map (T, T) int32; (C, C) where the CPU does all augmentation."""
        image, label_map, rng = self._images.cut(self._seed, self._first + item, self._tile_px)
        image, label_map = self._effects(image, label_map, rng)
        return torch.from_numpy(image), torch.from_numpy(label_map)


def draw_window(shape: tuple[int, int], tile_px: int, zoom: float, rng: np.random.Generator) -> Window:
    """Return a random part of an image of `shape` (H, W) that makes a tile of `tile_px` at `zoom` output px per px.

    It is smaller where the image is.
    """
    source_px = max(1, round(tile_px / zoom))
    top, left = draw_corner(shape, source_px, rng)
    return np.s_[top : top + source_px, left : left + source_px]


def make_tile(
    image: NDArray[np.uint8], label_map: NDArray[np.uint16], tile_px: int, zoom: float, contrast: Contrast
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Make a tile of what `draw_window` cut from an image; where the image ends, it is mirrored.

    Args:
        image: (H, W, 3) uint8.
        label_map: (H, W) integer.
        tile_px: side of the tile, T.
        zoom: output px per input px; smaller than 1 averages areas.
        contrast: of the whole image, by which the network is shown it. It comes before the zoom, as in prediction:
            the density of a mean is not the mean of densities.

    Returns:
        (T, T, 3) uint8 and (T, T) int32.
    """
    tile, ids = zoom_pair(apply_contrast(image, contrast), label_map, zoom)
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
        worker_init_fn=start_worker,
    )
