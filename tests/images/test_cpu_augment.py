"""What albumentations does to one tile: nothing unless asked, the same for the same numbers, labels never mixed."""

import inspect
import pickle
import subprocess
import sys

import numpy as np
import pytest

from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.images.cpu_augment import COLOURS, CPU_EFFECTS, WARPS, WITHOUT_COUNTERPART, CpuAugment
from pipeline.images.effects import EFFECTS
from pipeline.params import AugmentParams

CROP = 48


def build(backend="device", crop_px=CROP, **effects):
    return CpuAugment(AugmentParams(backend=backend, effects=effects), crop_px)


def build_whole(crop_px=CROP, **effects):
    return build("albumentations", crop_px, **effects)


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


def middle(array):
    return array[8 : 8 + CROP, 8 : 8 + CROP]


@pytest.fixture(scope="module")
def strong():
    """Return the effects of `conf/augment/strong.yaml`."""
    return compose_params(["augment=strong"]).augment.effects


@pytest.mark.parametrize("backend", ["device", None])
def test_without_effects_tiles_pass_through(tile, backend):
    image, label_map = build(backend, zoom={"octaves": 1.0}, jpeg=None)(*tile, rng())
    assert image is tile[0]
    assert label_map is tile[1]


def test_without_a_backend_effects_are_off(tile):
    assert build(None, clahe={"probability": 1.0})(*tile, rng())[0] is tile[0]


def test_without_effects_albumentations_is_not_imported(pytestconfig):
    code = """
import sys
from pipeline.images.cpu_augment import CpuAugment
from pipeline.params import AugmentParams
CpuAugment(AugmentParams(backend="device", effects={"zoom": {"octaves": 1.0}}), 8)
sys.exit("albumentations" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pytestconfig.rootpath)


@pytest.mark.parametrize("backend", ["device", "albumentations"])
@pytest.mark.parametrize(
    ("options", "message"), [({}, "jpeg.probability: missing"), ({"probability": 2.0}, "jpeg.probability: .*got 2")]
)
def test_keys_are_checked(backend, options, message):
    with pytest.raises(InputError, match=rf"augment\.effects\.{message}"):
        build(backend, jpeg=options)


def test_an_effect_that_albumentations_lacks_is_refused_by_name():
    with pytest.raises(InputError, match=r"augment\.effects\.swirl: albumentations lacks it"):
        build_whole(swirl={})
    build("device", swirl={})  # not this module's to judge


def test_counterparts_take_the_keys_of_the_effects():
    """A counterpart is told what the effect is told, within the same bounds."""
    both = WARPS | COLOURS
    assert both.keys() | WITHOUT_COUNTERPART == EFFECTS.keys()
    assert not both.keys() & WITHOUT_COUNTERPART
    assert not CPU_EFFECTS.keys() & EFFECTS.keys()
    for name, counterpart in both.items():
        keys, wanted = (
            {
                key.name: key.annotation
                for key in inspect.signature(function).parameters.values()
                if key.kind is inspect.Parameter.KEYWORD_ONLY
            }
            for function in (counterpart.arguments, EFFECTS[name].apply)
        )
        assert keys == wanted, name


@pytest.mark.parametrize("effect", ["clahe", "jpeg", "stain"])
def test_an_effect_changes_colours_only_and_the_same_way_again(tile, effect):
    effects = build(**{effect: {"probability": 1.0}})
    before = [array.copy() for array in tile]
    image, label_map = effects(*tile, rng(3))
    assert image.shape == tile[0].shape
    assert image.dtype == np.uint8
    assert label_map.dtype == np.int32
    assert (image != tile[0]).any()
    assert np.array_equal(label_map, tile[1])
    assert np.array_equal(image, effects(*tile, rng(3))[0])
    assert all(np.array_equal(array, kept) for array, kept in zip(tile, before, strict=True))


def test_stains_are_changed_in_coloured_tiles_only(tile, grey):
    effects = build(stain={"probability": 1.0})
    assert (effects(*tile, rng())[0] != tile[0]).any()
    assert np.array_equal(effects(*grey, rng())[0], grey[0])


def test_a_probability_is_one(tile):
    effects = build(jpeg={"probability": 0.5})
    changed = sum((effects(*tile, rng(seed))[0] != tile[0]).any() for seed in range(60))
    assert 15 <= changed <= 45


class TestWholePolicy:
    def test_without_effects_it_is_the_middle_of_the_tile(self, tile):
        image, label_map = build_whole()(*tile, rng())
        assert np.array_equal(image, middle(tile[0]))
        assert np.array_equal(label_map, middle(tile[1]))

    def test_crops_keep_ids_and_follow_the_numbers(self, tile, strong):
        changes = {"blur": {"probability": 1.0, "sigma_px": 1.0}, "translation": {"px": 3.0}}
        changes["elastic"] = {"probability": 1.0, "std_px": 3.0, "spacing_px": 64}
        effects = build_whole(**(strong | changes))
        for seed in range(8):
            image, label_map = effects(*tile, rng(seed))
            assert (image.shape, image.dtype) == ((CROP, CROP, 3), np.uint8)
            assert (label_map.shape, label_map.dtype) == ((CROP, CROP), np.int32)
            assert np.isin(label_map, tile[1]).all()
            again = effects(*tile, rng(seed))
            assert np.array_equal(image, again[0])
            assert np.array_equal(label_map, again[1])
        assert not np.array_equal(effects(*tile, rng(0))[1], effects(*tile, rng(1))[1])

    def test_in_another_process_it_does_the_same(self, tile, strong):
        effects = build_whole(**strong)
        twin = pickle.loads(pickle.dumps(effects))
        for array, other in zip(effects(*tile, rng(4)), twin(*tile, rng(4)), strict=True):
            assert np.array_equal(array, other)

    def test_image_and_labels_are_warped_alike(self, tile):
        geometry = {"flips": {}, "rotation": {"deg": 20.0}, "zoom": {"octaves": 0.4}, "shear": {"deg": 5.0}}
        geometry |= {"translation": {"px": 4.0}, "elastic": {"probability": 1.0, "std_px": 2.0, "spacing_px": 32}}
        effects = build_whole(**geometry)
        shown = np.repeat((tile[1][..., None] > 0) * np.uint8(255), 3, axis=2)
        for seed in range(8):
            image, label_map = effects(shown, tile[1], rng(seed))
            inner = np.abs(image[..., 0].astype(int) - 127.5) > 120  # away from borders, where colours mix
            assert np.array_equal(image[inner][:, 0] > 127, label_map[inner] > 0)
            assert inner.mean() > 0.5

    @pytest.mark.parametrize("effect", ["zoom", "rotation", "shear", "translation"])
    def test_effects_of_one_transform_do_not_bring_each_other(self, tile, effect):
        """With a strength of 0 the one that is asked for does nothing, and so do those that share its transform."""
        key = {"zoom": "octaves", "translation": "px"}.get(effect, "deg")
        _, label_map = build_whole(**{effect: {key: 0.0}})(*tile, rng())
        assert np.array_equal(label_map, middle(tile[1]))

    @pytest.mark.parametrize(("effect", "key"), [("brightness", "shift"), ("contrast", "octaves")])
    def test_brightness_does_not_bring_contrast_nor_the_other_way(self, tile, effect, key):
        image, _ = build_whole(**{effect: {key: 0.0}})(*tile, rng())
        assert np.array_equal(image, middle(tile[0]))

    def test_inversion(self, tile):
        image, _ = build_whole(inversion={"probability": 1.0})(*tile, rng())
        assert np.array_equal(255 - image, middle(tile[0]))

    def test_elastic_displacements_have_the_deviation_asked_for(self):
        """The label map is its own ruler: an id is its column."""
        ruler = np.tile(np.arange(256, dtype=np.int32), (256, 1))
        effects = build_whole(160, elastic={"probability": 1.0, "std_px": 4.0, "spacing_px": 24})
        image = np.zeros((256, 256, 3), np.uint8)
        moved = np.array([effects(image, ruler, rng(seed))[1] for seed in range(12)]) - ruler[48:208, 48:208]
        assert moved.std() == pytest.approx(4.0, rel=0.15)
