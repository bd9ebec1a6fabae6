"""What albumentations does to one tile: nothing unless asked, the same for the same numbers, labels never mixed."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from pipeline.images.cpu_augment import CpuAugment

CROP = 48


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def tile():
    """Return a purple-on-white tile of 64 px and a label map with ids up to 100,000."""
    noise = rng().integers(-10, 11, (64, 64, 3))
    coarse = rng().integers(0, 100_000, (8, 8)) * rng(1).integers(0, 2, (8, 8))
    label_map = np.kron(coarse, np.ones((8, 8), int)).astype(np.int32)
    image = np.where(label_map[..., None] > 0, (120, 60, 150), (225, 215, 230)) + noise
    return image.astype(np.uint8), label_map


@pytest.fixture
def grey(tile):
    return np.repeat(tile[0][..., :1], 3, axis=2), tile[1]


@pytest.fixture
def whole(no_augment):
    return no_augment.model_copy(update={"backend": "albumentations"})


def middle(array):
    return array[8 : 8 + CROP, 8 : 8 + CROP]


def elastic(params, **changes):
    return params.model_copy(update={"elastic": params.elastic.model_copy(update=changes)})


@pytest.mark.parametrize("backend", ["device", "none"])
def test_without_effects_tiles_pass_through(tile, no_augment, backend):
    effects = CpuAugment(no_augment.model_copy(update={"backend": backend}), CROP)
    image, label_map = effects(*tile, rng())
    assert image is tile[0]
    assert label_map is tile[1]


def test_the_backend_none_switches_effects_off(tile, params):
    active = params.augment.model_copy(update={"backend": "none", "cpu_clahe": 1.0})
    assert CpuAugment(active, CROP)(*tile, rng())[0] is tile[0]


def test_without_effects_albumentations_is_not_imported(pytestconfig):
    code = """
import sys
from pathlib import Path
from pipeline.images.cpu_augment import CpuAugment
from pipeline.params import load_params
off = dict.fromkeys(("cpu_clahe", "cpu_jpeg", "cpu_stain"), 0.0) | {"backend": "device"}
CpuAugment(load_params(Path("params.yaml")).augment.model_copy(update=off), 8)
sys.exit("albumentations" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pytestconfig.rootpath)


@pytest.mark.parametrize("effect", ["cpu_clahe", "cpu_jpeg", "cpu_stain"])
def test_an_effect_changes_colours_only_and_the_same_way_again(tile, no_augment, effect):
    effects = CpuAugment(no_augment.model_copy(update={effect: 1.0}), CROP)
    before = [array.copy() for array in tile]
    image, label_map = effects(*tile, rng(3))
    assert image.shape == tile[0].shape
    assert image.dtype == np.uint8
    assert label_map.dtype == np.int32
    assert (image != tile[0]).any()
    assert np.array_equal(label_map, tile[1])
    assert np.array_equal(image, effects(*tile, rng(3))[0])
    assert all(np.array_equal(array, kept) for array, kept in zip(tile, before, strict=True))


def test_stains_are_changed_in_coloured_tiles_only(tile, grey, no_augment):
    effects = CpuAugment(no_augment.model_copy(update={"cpu_stain": 1.0}), CROP)
    assert (effects(*tile, rng())[0] != tile[0]).any()
    assert np.array_equal(effects(*grey, rng())[0], grey[0])


def test_a_probability_is_one(tile, no_augment):
    effects = CpuAugment(no_augment.model_copy(update={"cpu_jpeg": 0.5}), CROP)
    changed = sum((effects(*tile, rng(seed))[0] != tile[0]).any() for seed in range(60))
    assert 15 <= changed <= 45


class TestWholePolicy:
    def test_without_strengths_it_is_the_middle_of_the_tile(self, tile, whole):
        image, label_map = CpuAugment(whole, CROP)(*tile, rng())
        assert np.abs(image.astype(int) - middle(tile[0])).max() <= 1  # rounding
        assert np.array_equal(label_map, middle(tile[1]))

    def test_a_strength_of_0_leaves_an_effect_out_whatever_its_probability(self, tile, whole):
        params = elastic(whole.model_copy(update={"blur": 1.0}), probability=1.0)
        image, label_map = CpuAugment(params, CROP)(*tile, rng())
        assert np.abs(image.astype(int) - middle(tile[0])).max() <= 1
        assert np.array_equal(label_map, middle(tile[1]))

    def test_crops_keep_ids_and_follow_the_numbers(self, tile, params):
        policy = params.augment.model_copy(update={"backend": "albumentations", "blur": 1.0, "translation_px": 3.0})
        effects = CpuAugment(elastic(policy, probability=1.0, std_px=3.0), CROP)
        for seed in range(8):
            image, label_map = effects(*tile, rng(seed))
            assert (image.shape, image.dtype) == ((CROP, CROP, 3), np.uint8)
            assert (label_map.shape, label_map.dtype) == ((CROP, CROP), np.int32)
            assert np.isin(label_map, tile[1]).all()
            again = effects(*tile, rng(seed))
            assert np.array_equal(image, again[0])
            assert np.array_equal(label_map, again[1])
        assert not np.array_equal(effects(*tile, rng(0))[1], effects(*tile, rng(1))[1])

    def test_in_another_process_it_does_the_same(self, tile, params):
        effects = CpuAugment(params.augment.model_copy(update={"backend": "albumentations"}), CROP)
        twin = pickle.loads(pickle.dumps(effects))
        for array, other in zip(effects(*tile, rng(4)), twin(*tile, rng(4)), strict=True):
            assert np.array_equal(array, other)

    def test_image_and_labels_are_warped_alike(self, tile, whole):
        geometry = {"flips": True, "rotation_deg": 20.0, "log2_scale": 0.4, "shear_deg": 5.0, "translation_px": 4.0}
        effects = CpuAugment(elastic(whole.model_copy(update=geometry), probability=1.0, std_px=2.0), CROP)
        shown = np.repeat((tile[1][..., None] > 0) * np.uint8(255), 3, axis=2)
        for seed in range(8):
            image, label_map = effects(shown, tile[1], rng(seed))
            inner = np.abs(image[..., 0].astype(int) - 127.5) > 120  # away from borders, where colours mix
            assert np.array_equal(image[inner][:, 0] > 127, label_map[inner] > 0)
            assert inner.mean() > 0.5

    def test_inversion(self, tile, whole):
        image, _ = CpuAugment(whole.model_copy(update={"inversion": 1.0}), CROP)(*tile, rng())
        assert np.abs(255 - image.astype(int) - middle(tile[0])).max() <= 1

    def test_elastic_displacements_have_the_deviation_asked_for(self, whole):
        """The label map is its own ruler: an id is its column."""
        ruler = np.tile(np.arange(256, dtype=np.int32), (256, 1))
        effects = CpuAugment(elastic(whole, probability=1.0, std_px=4.0, spacing_px=24), 160)
        image = np.zeros((256, 256, 3), np.uint8)
        moved = np.array([effects(image, ruler, rng(seed))[1] for seed in range(12)]) - ruler[48:208, 48:208]
        assert moved.std() == pytest.approx(4.0, rel=0.15)
