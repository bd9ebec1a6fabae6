"""Training images that live on the device, and batches of tiles cut from them there.

In: a `TileDataset`. Out: the batches that `make_loader` would give, with nothing but eight numbers per tile crossing to
the device. Where nuclei are brought to one size, an image is zoomed once, whole, instead of tile by tile: the draws
stay, and tiles lie a pixel or two from where the loader's do.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.images.dataset import TileDataset, draw_corner

# Bytes of an image's pixel on the device: three of colour, four of id.
_BYTES_PER_PX = 7


def fits_on(device: torch.device, pixels: int) -> bool:
    """Say whether images of so many pixels take less than half of what is free on a CUDA device; False elsewhere."""
    return device.type == "cuda" and _BYTES_PER_PX * pixels < torch.cuda.mem_get_info(device)[0] // 2


class ResidentTiles:
    """The images of `dataset` on `device`; iterating yields batches of its samples in their order.

    A batch is tiles (B, T, T, 3) uint8 and label maps (B, T, T) int32 on the device; the last one is whole or left out.
    """

    def __init__(self, dataset: TileDataset, batch: int, device: torch.device) -> None:
        images, label_maps = zip(*dataset.whole_images(), strict=True)
        self._dataset, self._batch, self._device = dataset, batch, device
        self._shapes = [image.shape[:2] for image in images]
        self._firsts = np.cumsum([0] + [height * width for height, width in self._shapes])
        self._pixels = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images])).to(device)
        self._ids = torch.from_numpy(np.concatenate([ids.ravel() for ids in label_maps])).to(device)

    def __len__(self) -> int:
        return len(self._dataset) // self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self)):
            items = range(number * self._batch, (number + 1) * self._batch)
            windows = torch.tensor([self._draw_window(item) for item in items])
            if self._device.type == "cuda":
                windows = windows.pin_memory()  # else the copy waits for the device
            yield cut_windows(
                self._pixels, self._ids, windows.to(self._device, non_blocking=True), self._dataset.tile_px
            )

    def _draw_window(self, item: int) -> tuple[int, int, int, int, int]:
        """Return where a sample's tile lies: the image's first pixel, height and width, and the tile's corner."""
        index, rng = self._dataset.draw_image(item)
        height, width = self._shapes[index]
        return int(self._firsts[index]), height, width, *draw_corner((height, width), self._dataset.tile_px, rng)


def cut_windows(pixels: Tensor, ids: Tensor, windows: Tensor, tile_px: int) -> tuple[Tensor, Tensor]:
    """Cut a tile from each of the images that lie one after another in `pixels`; a shorter side is mirrored outwards.

    Args:
        pixels: (P, 3) uint8, images row by row.
        ids: (P,) int32.
        windows: (B, 5) int64: an image's first pixel, height, width, and the tile's top and left.
        tile_px: T.

    Returns:
        (B, T, T, 3) uint8 and (B, T, T) int32 on the same device.
    """
    first, height, width, top, left = windows[:, :, None].unbind(1)
    rows = _mirror(top, height, tile_px)
    columns = _mirror(left, width, tile_px)
    index = first[:, None] + rows[:, :, None] * width[:, None] + columns[:, None, :]
    return pixels[index], ids[index]


def _mirror(corner: Tensor, length: Tensor, tile_px: int) -> Tensor:
    """Return (B, T) positions from `corner` (B, 1) on; a shorter `length` (B, 1) is centred and repeats its edge."""
    before = (tile_px - length).clamp_min(0) // 2
    position = (corner - before + torch.arange(tile_px, device=corner.device)) % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position)
