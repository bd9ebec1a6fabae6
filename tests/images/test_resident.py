"""Tiles cut on the device are the loader's tiles, byte for byte where no zoom resamples them."""

import numpy as np
import pytest
import torch

from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, TrainingImages, make_loader
from pipeline.images.resident import ResidentImages, ResidentTiles, fits_on

CPU = torch.device("cpu")
# Larger than the tile of 48 px, smaller along one side, along both, and by so much that mirroring goes back and forth.
SHAPES = [(90, 110), (60, 31), (20, 17), (5, 70)]


SEED, BATCH = 5, 4


@pytest.fixture
def make_images(make_split, params):
    rng = np.random.default_rng(0)
    images = {
        str(i): (rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 60_000, shape).astype(np.uint16))
        for i, shape in enumerate(SHAPES)
    }
    split = make_split(images, median_area_px=[225.0, 300.0, 100.0, 0.0])

    def make(object_diameter_px=0.0):
        size = params.size.model_copy(update={"object_diameter_px": object_diameter_px})
        plain = params.contrast.model_copy(update={"density": False})  # three channels of their own
        return TrainingImages(split, plain, size, 0.5)

    return make


@pytest.mark.parametrize("tile_px", [48, 24])
def test_batches_are_the_loaders(make_images, no_augment, tile_px):
    images = make_images()
    resident = ResidentTiles(ResidentImages(images, CPU), tile_px, BATCH, SEED, 0, 26)
    dataset = TileDataset(images, tile_px, CpuAugment(no_augment, 16), SEED, 0, 26)
    loaded = list(make_loader(dataset, BATCH, workers=0, pin=False))
    cut = list(resident)
    assert len(cut) == len(loaded) == len(resident) == 6
    for (tiles, ids), (loaded_tiles, loaded_ids) in zip(cut, loaded, strict=True):
        assert tiles.dtype == torch.uint8
        assert ids.dtype == torch.int32
        assert torch.equal(tiles, loaded_tiles)
        assert torch.equal(ids, loaded_ids)


def test_a_restart_goes_on_where_it_was(make_images):
    resident = ResidentImages(make_images(), CPU)
    later = next(iter(ResidentTiles(resident, 48, BATCH, SEED, 8, 26)))
    assert torch.equal(later[0], list(ResidentTiles(resident, 48, BATCH, SEED, 0, 26))[2][0])


def test_zoomed_images_are_zoomed_once_and_whole(make_images):
    """Drawn images have their own zooms."""
    images = make_images(object_diameter_px=34.0)
    (height, width), zoom = SHAPES[0], 34.0 / (2 * np.sqrt(225 / np.pi))
    image, label_map = next(images.whole_images())
    assert image.shape == (round(height * zoom), round(width * zoom), 3)
    assert label_map.shape == image.shape[:2]
    shapes = [image.shape for image, _ in images.whole_images()]
    assert images.pixels == pytest.approx(sum(h * w for h, w, _ in shapes), rel=0.05)


def test_on_a_cpu_images_stay_in_the_pack():
    assert not fits_on(CPU, 1)
