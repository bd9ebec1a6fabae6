"""Training images that live on the device, and batches of tiles cut from them there.

In: `TrainingImages`. Out: the batches that `make_loader` would give, with nothing but five numbers per tile crossing
to the device. Where nuclei are brought to one size, an image is zoomed once, whole, instead of tile by tile: the draws
stay, and tiles lie a pixel or two from where the loader's do.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.images.dataset import TrainingImages, draw_corner

# Bytes of an image's pixel on the device: three of colour, four of id.
_BYTES_PER_PX = 7


def fits_on(device: torch.device, pixels: int) -> bool:
    """Say whether images of so many pixels take less than half of what is free on a CUDA device; False elsewhere."""
    return device.type == "cuda" and _BYTES_PER_PX * pixels < torch.cuda.mem_get_info(device)[0] // 2


class ResidentImages:
    """Training images on a device, uploaded once: at the zoom of their tiles, one after another.

    Attributes:
        images: what they were made of, which says of which image a sample is.
        pixels: (P, 3) uint8 on the device, images row by row.
        ids: (P,) int32 on the device.
        shapes: (H, W) of each image.
        firsts: (n + 1,), the position of each image's first pixel.
    """

    def __init__(self, images: TrainingImages, device: torch.device) -> None:
        arrays, label_maps = zip(*images.whole_images(), strict=True)
        self.images = images
        self.shapes = [array.shape[:2] for array in arrays]
        self.firsts = np.cumsum([0] + [height * width for height, width in self.shapes])
        self.pixels = torch.from_numpy(np.concatenate([array.reshape(-1, 3) for array in arrays])).to(device)
        self.ids = torch.from_numpy(np.concatenate([ids.ravel() for ids in label_maps])).to(device)


class ResidentTiles:
    """Tiles of resident images; iterating yields batches of the samples `first` up to `last` in their order.

    A batch is tiles (B, T, T, 3) uint8 and label maps (B, T, T) int32 on the device; the last one is whole or left out.
    """

    def __init__(self, resident: ResidentImages, tile_px: int, batch: int, seed: int, first: int, last: int) -> None:
        self._resident, self._tile_px, self._batch = resident, tile_px, batch
        self._seed, self._first, self._last = seed, first, last

    def __len__(self) -> int:
        return (self._last - self._first) // self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        resident = self._resident
        device = resident.pixels.device
        for number in range(len(self)):
            begin = self._first + number * self._batch
            windows = torch.tensor([self._draw_window(sample) for sample in range(begin, begin + self._batch)])
            if device.type == "cuda":
                windows = windows.pin_memory()  # else the copy waits for the device
            yield cut_windows(resident.pixels, resident.ids, windows.to(device, non_blocking=True), self._tile_px)

    def _draw_window(self, sample: int) -> tuple[int, int, int, int, int]:
        """Return where a sample's tile lies: the image's first pixel, height and width, and the tile's corner."""
        resident = self._resident
        index, rng = resident.images.draw_image(self._seed, sample)
        height, width = resident.shapes[index]
        return int(resident.firsts[index]), height, width, *draw_corner((height, width), self._tile_px, rng)


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
