"""Tiles cut on the device are the loader's tiles, byte for byte where no zoom resamples them."""

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.images.dataset import TileDataset, make_loader
from pipeline.images.resident import ResidentTiles, fits_on
from pipeline.images.store import Pack, PackWriter

CPU = torch.device("cpu")
# Larger than the tile of 48 px, smaller along one side, along both, and by so much that mirroring goes back and forth.
SHAPES = [(90, 110), (60, 31), (20, 17), (5, 70)]


@pytest.fixture
def make_dataset(tmp_path, params, no_augment):
    rng = np.random.default_rng(0)
    with PackWriter(tmp_path / "images.npz") as pack:
        for i, shape in enumerate(SHAPES):
            pack.add(f"{i}.image", rng.integers(0, 256, (*shape, 3), np.uint8))
            pack.add(f"{i}.label_map", rng.integers(0, 60_000, shape).astype(np.uint16))
    table = pd.DataFrame(
        {"image_id": list("0123"), "image_type": ["fluorescence"] * 4, "median_area_px": [225.0, 300.0, 100.0, 0.0]}
    )

    def make(first=0, last=26, **train):
        settings = {"tile_px": 48, "crop_px": 32, "object_diameter_px": 0.0} | train
        pack = Pack(tmp_path / "images.npz")
        train_params = params.train.model_copy(update=settings)
        return TileDataset(pack, table, train_params, params.contrast, no_augment, 5, first=first, last=last)

    return make


def test_batches_are_the_loaders(make_dataset):
    resident = ResidentTiles(make_dataset(), 4, CPU)
    loaded = list(make_loader(make_dataset(), 4, workers=0, pin=False))
    cut = list(resident)
    assert len(cut) == len(loaded) == len(resident) == 6
    for (tiles, ids), (loaded_tiles, loaded_ids) in zip(cut, loaded, strict=True):
        assert tiles.dtype == torch.uint8
        assert ids.dtype == torch.int32
        assert torch.equal(tiles, loaded_tiles)
        assert torch.equal(ids, loaded_ids)


def test_a_restart_goes_on_where_it_was(make_dataset):
    later = next(iter(ResidentTiles(make_dataset(first=8), 4, CPU)))
    assert torch.equal(later[0], list(ResidentTiles(make_dataset(), 4, CPU))[2][0])


def test_zoomed_images_are_zoomed_once_and_whole(make_dataset):
    """Drawn images have their own zooms."""
    dataset = make_dataset(object_diameter_px=34.0)
    (height, width), zoom = SHAPES[0], 34.0 / (2 * np.sqrt(225 / np.pi))
    image, label_map = next(dataset.whole_images())
    assert image.shape == (round(height * zoom), round(width * zoom), 3)
    assert label_map.shape == image.shape[:2]
    shapes = [image.shape for image, _ in dataset.whole_images()]
    assert dataset.pixels == pytest.approx(sum(h * w for h, w, _ in shapes), rel=0.05)


def test_on_a_cpu_images_stay_in_the_pack():
    assert not fits_on(CPU, 1)
