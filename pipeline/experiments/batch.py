"""What training sees, to look at: augmented tiles with the true outlines of their nuclei, side by side.

In: a prepared split and a `Recipe`. Out: a sheet `(H, W, 3)` uint8 RGB, and a PNG of it. Tiles have the size that they
have in the second half of a training; each is made as a step makes it, by the same code and from the same random
numbers. (Where a training keeps its images on the device, a zoomed tile lies a pixel or two from where it lies here.)
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries
from skimage.util import montage

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.images.augment import build_augment
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, TrainingImages, make_loader
from pipeline.images.png import PNG_SIGNATURE, png_chunk
from pipeline.images.splits import PreparedSplit
from pipeline.params import Recipe
from pipeline.unet.runtime import start_runtime

GAP_PX = 4
TRUE_RGB = (60, 220, 80)  # neither grey nor a colour of stains
_GAP_RGB = (128, 128, 128)  # neither a dark tile's background nor a light one's
_MOST_TILES = 256
_MOST_SEED = 2**31 - 1  # as params.yaml has it
# Says of a PNG that it is a sheet; it lies behind the signature and the header, which are of one length in every PNG.
_MARK = png_chunk(b"tEXt", b"Software\0python -m pipeline show batch")
_MARK_FROM = len(PNG_SIGNATURE) + len(png_chunk(b"IHDR", bytes(13)))


def write_sheet(path: Path, prepared: Path, recipe: Recipe, count: int, seed: int) -> None:
    """Write a PNG of what `draw_sheet` draws of the images that `prepare` wrote to `prepared`.

    Raises:
        InputError: `path` is no name of a PNG, or a file that this did not write; there are no labelled images; or what
            `draw_sheet` refuses.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the sheet is a PNG; let the name of --out end in .png")
    if path.exists() and not _is_sheet(path):
        raise InputError(f"{path}: is there, and no sheet of this command; name another file by --out, or move it away")
    if not (prepared / "images.npz").is_file():
        raise InputError(f"{prepared}: no prepared images there; run `dvc repro prepare`, or name others by --prepared")
    split = PreparedSplit.open(prepared)
    if not split.table["nuclei"].any():
        raise InputError(f"{prepared}: no nuclei are known of its images, as of a test set; name others by --prepared")
    sheet = draw_sheet(split, recipe, count, seed)
    png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes()
    with atomic_path(path) as partial:
        partial.write_bytes(png[:_MARK_FROM] + _MARK + png[_MARK_FROM:])


def _is_sheet(path: Path) -> bool:
    """Whether the file at `path` is one that `write_sheet` wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(_MARK_FROM + len(_MARK))[_MARK_FROM:] == _MARK


def draw_sheet(split: PreparedSplit, recipe: Recipe, count: int, seed: int) -> NDArray[np.uint8]:
    """Return tiles of side `train.crop_px` in rows from the top left, each framed by `GAP_PX`, outlines on them.

    The outline of a nucleus is its outermost pixels.

    Args:
        split: the images, labelled.
        recipe: what networks are trained by.
        count: of the tiles, 1 to 256.
        seed: of all that is drawn by chance; with more tiles the first ones stay.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: a number is out of bounds, or an effect of the recipe is.
    """
    if not 1 <= count <= _MOST_TILES:
        raise InputError(f"--tiles is {count}; give 1 to {_MOST_TILES}, and other tiles by another --seed")
    if not 0 <= seed <= _MOST_SEED:
        raise InputError(f"--seed is {seed}; give 0 to {_MOST_SEED}")
    tiles = []
    for image, label_map in _augment_tiles(split, recipe, count, seed):
        image[find_boundaries(label_map, mode="inner")] = TRUE_RGB
        tiles.append(image)
    columns = int(np.ceil(np.sqrt(count)))
    shape = -(-count // columns), columns
    sheet = montage(np.stack(tiles), fill=_GAP_RGB, grid_shape=shape, padding_width=GAP_PX, channel_axis=-1)
    return np.asarray(sheet, np.uint8)


def _augment_tiles(
    split: PreparedSplit, recipe: Recipe, count: int, seed: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """Yield `count` tiles (C, C, 3) uint8 and their label maps (C, C) int32, of side `train.crop_px`, augmented.

    They come from whole batches of `train.batch`, since the random numbers of a batch depend on its size.
    """
    train, device = recipe.train, start_runtime(recipe.runtime).device
    images = TrainingImages(split, recipe.contrast, recipe.size, train.balance)
    effects, augment = CpuAugment(recipe.augment, train.crop_px), build_augment(recipe.augment)
    dataset = TileDataset(images, train.tile_px, effects, seed, 0, count + train.batch - 1)
    generator = torch.Generator(device)
    for step, batch in enumerate(make_loader(dataset, train.batch, workers=0, pin=False)):
        generator.manual_seed(seed * 1_000_003 + step)  # as a trainer does
        tiles, label_maps = (part.to(device) for part in batch)
        inputs, ids = augment(tiles.permute(0, 3, 1, 2), label_maps, train.crop_px, generator)
        levels = (inputs.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        pairs = zip(levels.cpu().numpy(), ids.cpu().numpy(), strict=True)
        yield from islice(pairs, count - step * train.batch)
