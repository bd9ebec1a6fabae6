"""Sample n of a run is the same whoever asks for it; tiles are cut, zoomed and mirrored with their labels."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.diameter import equivalent_diameter, zooms_to_size
from pipeline.errors import InputError
from pipeline.images import dataset as dataset_module
from pipeline.images.contrast import Contrast, apply_contrast, find_contrast
from pipeline.images.cpu_augment import CpuAugment
from pipeline.images.dataset import TileDataset, TrainingImages, draw_window, make_loader, make_tile, sampling_weights
from pipeline.params import ContrastParams

TYPES = ["fluorescence"] * 3 + ["brightfield"]
PLAIN = Contrast(np.arange(256, dtype=np.uint8), as_density=False)
TABLE = pd.DataFrame({"image_type": TYPES, "height": 90, "width": 110, "weight": 1.0})


def cut_tile(image, label_map, tile_px, zoom, rng, contrast):
    window = draw_window(image.shape[:2], tile_px, zoom, rng)
    return make_tile(image[window], label_map[window], tile_px, zoom, contrast)


def blocks(rng, shape=(90, 110), side=15):
    """Return a label map of blocks, some of them background, and the image that shows it: nuclei white on black."""
    coarse = rng.permutation(200)[: 6 * 8].reshape(6, 8) * rng.integers(0, 2, (6, 8))
    label_map = np.kron(coarse, np.ones((side, side), int))[: shape[0], : shape[1]].astype(np.uint16)
    return np.repeat((label_map[..., None] > 0) * np.uint8(255), 3, axis=2), label_map


@pytest.fixture
def split(make_split):
    """Return a split of four images; image i is of the level 40 * i beside its nuclei."""
    rng = np.random.default_rng(0)
    images = {}
    for i in range(4):
        image, label_map = blocks(rng)
        images[str(i)] = np.maximum(image, 40 * i).astype(np.uint8), label_map
    return make_split(images, image_type=TYPES, median_area_px=[225.0, 225.0, 225.0, 0.0])


@pytest.fixture
def make_images(params):
    def make(split, stretch=False, object_diameter_px=20.0, balance=0.5):
        contrast = {"stretch": stretch, "density": False}
        size = {"object_diameter_px": object_diameter_px}
        return TrainingImages(
            split, params.contrast.model_copy(update=contrast), params.size.model_copy(update=size), balance
        )

    return make


@pytest.fixture
def make_dataset(split, make_images, no_augment):
    def make(first=0, last=12, seed=5, **changes):
        return TileDataset(make_images(split, **changes), 48, CpuAugment(no_augment, 32), seed, first, last)

    return make


class TestWeights:
    def test_without_balance_all_images_are_alike(self):
        assert sampling_weights(TABLE, 0) == pytest.approx([0.25] * 4)

    def test_with_balance_all_types_are_alike(self):
        assert sampling_weights(TABLE, 1) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])

    def test_half_way(self):
        """Weights 1 / sqrt(3/4) and 1 / sqrt(1/4), thus 1 to sqrt(3)."""
        total = 3 + np.sqrt(3)
        assert sampling_weights(TABLE, 0.5) == pytest.approx([1 / total] * 3 + [np.sqrt(3) / total])

    def test_an_image_is_drawn_as_often_as_its_source_weighs(self):
        """By their types the images weigh 2, 2, 2 and 6 twelfths; of 2 + 1 + 2 + 6 are then 11."""
        weights = sampling_weights(TABLE.assign(weight=[1.0, 0.5, 1.0, 1.0]), 1)
        assert weights == pytest.approx(np.array([2, 1, 2, 6]) / 11)

    @pytest.mark.parametrize("weight", [1.0, 2.0])
    def test_sources_that_weigh_the_same_change_no_bit(self, weight):
        types, widths = ["a"] * 401 + ["b"] * 16 + ["c"] * 108, [256] * 300 + [320] * 225
        table = pd.DataFrame({"image_type": types, "height": 256, "width": widths, "weight": 1.0})
        other = sampling_weights(table.assign(weight=weight), 0.5)
        assert other.tobytes() == sampling_weights(table, 0.5).tobytes()

    def test_with_balance_all_frame_sizes_of_a_type_are_alike_and_types_as_before(self):
        """The one image of 50 px weighs as much as the two others of its type together; in all they weigh a half."""
        assert sampling_weights(TABLE.assign(width=[110, 110, 50, 110]), 1) == pytest.approx(
            [1 / 8, 1 / 8, 1 / 4, 1 / 2]
        )

    def test_half_way_between_frame_sizes(self):
        """Within the type 1 / sqrt(2) twice and 1, times sqrt(4/3) over their mean; the other type sqrt(4)."""
        within = np.array([2**-0.5, 2**-0.5, 1])
        weights = np.r_[within / within.mean() * np.sqrt(4 / 3), 2]
        found = sampling_weights(TABLE.assign(width=[110, 110, 50, 110]), 0.5)
        assert found == pytest.approx(weights / weights.sum())

    @pytest.mark.parametrize("balance", [0, 0.5, 1])
    def test_images_of_frame_sizes_of_their_own_are_alike_within_a_type(self, balance):
        found = sampling_weights(TABLE.assign(width=[1, 2, 3, 4]), balance)
        assert found == pytest.approx(sampling_weights(TABLE, balance))

    def test_images_are_drawn_by_their_weights(self, make_dataset):
        dataset = make_dataset(last=600, balance=1.0)
        levels = [int(dataset[n][0].min()) for n in range(600)]
        shares = np.array([levels.count(40 * i) for i in range(4)]) / 600
        assert shares == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], abs=0.06)


class TestRunningNumbers:
    def test_items_are_tiles_of_the_right_types(self, make_dataset):
        image, label_map = make_dataset()[0]
        assert (image.shape, image.dtype) == ((48, 48, 3), torch.uint8)
        assert (label_map.shape, label_map.dtype) == ((48, 48), torch.int32)

    def test_an_item_is_the_same_every_time_and_others_differ(self, make_dataset):
        dataset = make_dataset()
        assert len(dataset) == 12
        items = [dataset[n][0] for n in (3, 3, 4)]
        assert torch.equal(items[0], items[1])
        assert not torch.equal(items[0], items[2])
        assert not torch.equal(items[0], make_dataset(seed=6)[3][0])

    def test_after_a_restart_the_rest_follows(self, make_dataset):
        whole = list(make_loader(make_dataset(), batch=4, workers=0, pin=False))
        rest = list(make_loader(make_dataset(first=4), batch=4, workers=0, pin=False))
        assert len(whole) == 3
        assert len(rest) == 2
        for (images, label_maps), (images_again, label_maps_again) in zip(whole[1:], rest, strict=True):
            assert images.shape == (4, 48, 48, 3)
            assert torch.equal(images, images_again)
            assert torch.equal(label_maps, label_maps_again)

    def test_whichever_worker_makes_it(self, make_dataset):
        here, there = (list(make_loader(make_dataset(), batch=4, workers=workers, pin=False)) for workers in (0, 2))
        for (images, label_maps), (images_there, label_maps_there) in zip(here, there, strict=True):
            assert torch.equal(images, images_there)
            assert torch.equal(label_maps, label_maps_there)

    def test_no_images_are_refused(self, make_images, split):
        with pytest.raises(InputError, match="no images to train on"):
            make_images(split.select([]))

    def test_images_are_named_as_their_samples_show_them(self, make_dataset, make_images, split):
        """Image i is of the level 40 * i beside its nuclei."""
        levels = [int(tile.min()) for tile, _ in (make_dataset(first=7, last=19)[n] for n in range(12))]
        assert make_images(split).name_images(5, range(7, 19)) == [str(level // 40) for level in levels]
        assert len(set(levels)) > 1


def test_the_contrast_of_the_whole_image_is_used(split, make_images, no_augment):
    """Image 3 spans 120 to 255; a tile of it is stretched alike, whatever the tile itself spans."""
    images = make_images(split.select(["3"]), stretch=True, object_diameter_px=0.0)
    dataset = TileDataset(images, 8, CpuAugment(no_augment, 8), 0, 0, 30)
    assert {int(level) for n in range(30) for level in dataset[n][0].unique()} == {0, 255}


def test_contrast_is_found_once_for_all_data_sets_of_a_training(split, make_images, no_augment, monkeypatch):
    found = []
    find = dataset_module.find_contrast
    monkeypatch.setattr(dataset_module, "find_contrast", lambda *arguments: found.append(1) or find(*arguments))
    images = make_images(split, stretch=True)
    for tile_px in (16, 48):
        TileDataset(images, tile_px, CpuAugment(no_augment, 8), 0, 0, 3)[0]
    images.name_images(0, range(9))
    assert len(found) == len(split)


class TestZoom:
    @pytest.mark.parametrize("radius", [8, 12, 30])
    def test_a_disc_gets_the_wished_diameter(self, params, radius):
        rows, cols = np.mgrid[:100, :100] - 50
        disc = (rows**2 + cols**2 <= radius**2).astype(np.uint16)
        size = params.size.model_copy(update={"object_diameter_px": 28.0})
        zoom = float(zooms_to_size(equivalent_diameter(np.array([disc.sum()])), size)[0])
        image = np.repeat(disc[..., None] * np.uint8(255), 3, axis=2).astype(np.uint8)
        tile, ids = cut_tile(image, disc, max(50, round(100 * zoom)), zoom, np.random.default_rng(0), PLAIN)
        assert (ids == 1).sum() == pytest.approx(np.pi * 14**2, rel=0.06)
        assert (tile[..., 0] > 127).sum() == pytest.approx(np.pi * 14**2, rel=0.06)


class TestTiles:
    @pytest.mark.parametrize("zoom", [0.4, 0.75, 1.0, 1.3, 2.6])
    def test_image_and_labels_stay_aligned(self, zoom):
        rng = np.random.default_rng(1)
        for _ in range(5):
            image, label_map = blocks(rng)
            tile, ids = cut_tile(image, label_map, 40, zoom, rng, PLAIN)
            assert tile.shape == (40, 40, 3)
            assert ids.shape == (40, 40)
            assert ids.dtype == np.int32
            assert np.isin(ids, label_map).all()
            inner = np.abs(tile[..., 0].astype(int) - 127.5) > 127  # away from borders, where colours mix
            assert np.array_equal(tile[inner][:, 0] > 127, ids[inner] > 0)
            assert inner.mean() > 0.5

    @pytest.mark.parametrize("zoom", [0.4, 0.75, 1.3, 2.6])
    def test_labels_are_not_shifted_against_the_image(self, zoom):
        """Image and labels both say the column; they may differ by rounding, but not in the mean."""
        label_map = np.tile(np.arange(200, dtype=np.uint16), (200, 1))
        image = np.repeat(label_map[..., None], 3, axis=2).astype(np.uint8)
        tile, ids = cut_tile(image, label_map, 70, zoom, np.random.default_rng(0), PLAIN)
        assert np.abs((tile[..., 0] - ids).mean()) < 0.15

    def test_without_zoom_a_tile_is_a_window(self):
        image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        label_map = np.arange(99, dtype=np.uint16).reshape(9, 11)
        corners = set()
        for seed in range(100):
            tile, ids = cut_tile(image, label_map, 8, 1.0, np.random.default_rng(seed), PLAIN)
            top, left = divmod(int(ids[0, 0]), 11)
            corners.add((top, left))
            assert np.array_equal(tile, image[top : top + 8, left : left + 8])
            assert np.array_equal(ids, label_map[top : top + 8, left : left + 8])
        assert corners == {(top, left) for top in range(2) for left in range(4)}  # every window there is

    def test_a_small_image_is_mirrored_in_the_middle(self):
        label_map = np.array([[1, 2], [3, 4]], np.uint16)
        image = np.repeat(label_map[..., None], 3, axis=2).astype(np.uint8)
        tile, ids = cut_tile(image, label_map, 5, 1.0, np.random.default_rng(0), PLAIN)
        expected = np.array([[1, 2], [3, 4]])[[0, 0, 1, 1, 0]][:, [0, 0, 1, 1, 0]]
        assert np.array_equal(ids, expected)
        assert np.array_equal(tile[..., 2], expected)

    @pytest.mark.parametrize("zoom", [0.5, 0.7, 1.7])
    def test_a_tile_of_a_stained_image_is_what_prediction_sees_of_it(self, zoom):
        """Prediction takes densities first and zooms then."""
        image = np.full((60, 60, 3), (230, 120, 200), np.uint8)
        image[21:40, 21:40] = 60, 40, 140  # in halves, pixels of both colours go together
        contrast = find_contrast(image, ContrastParams(stretch=True, density=True))
        assert contrast.as_density
        side = round(60 * zoom)
        tile, _ = cut_tile(image, np.zeros((60, 60), np.uint16), side, zoom, np.random.default_rng(0), contrast)
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        expected = cv2.resize(apply_contrast(image, contrast), (side, side), interpolation=how)
        np.testing.assert_array_equal(tile, expected)

    @pytest.mark.parametrize("zoom", [0.25, 1.0, 4.0])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 70), (3, 2)])
    def test_tiny_images_fill_the_tile(self, shape, zoom):
        label_map = np.full(shape, 60000, np.uint16)
        tile, ids = cut_tile(np.full((*shape, 3), 9, np.uint8), label_map, 64, zoom, np.random.default_rng(0), PLAIN)
        assert tile.shape == (64, 64, 3)
        assert (tile == 9).all()
        assert ids.shape == (64, 64)
        assert (ids == 60000).all()
