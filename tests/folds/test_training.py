"""A fold's training: which batches it learns from, what it never sees, and when it is not repeated."""

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.folds.networks import load_models
from pipeline.folds.table import open_folded
from pipeline.folds.training import BatchFeed, make_preparation, make_trainer, train_fold
from pipeline.images.dataset import TrainingImages
from pipeline.images.splits import PreparedSplit
from pipeline.unet.training import Trainer
from pipeline.unet.weights import read_metadata, read_weights
from tests.tiny import tiny_params

PLACES = {"a": ("a", 0), "b": ("b", 0), "c": ("c", 1), "d": ("d", 1), "e": ("e", 1)}


def make_params(start_crop_px, **changes):
    return tiny_params(train__epochs=1, train__steps_per_epoch=5, train__start_crop_px=start_crop_px, **changes)


def read_batches(split, params, step=0):
    recipe = params.recipe
    images = TrainingImages(split, recipe.contrast, recipe.size, recipe.train.balance)
    return list(BatchFeed(images, make_trainer(0, recipe), recipe, params.housekeeping).batches_from(step))


@pytest.fixture
def split(make_split):
    return PreparedSplit.open(make_split("ab"))


@pytest.fixture
def steps(monkeypatch):
    """Return the list of the steps that are taken from now on."""
    taken, take_step = [], Trainer.take_step

    def note(trainer, batch, prepare):
        taken.append(trainer.step)
        take_step(trainer, batch, prepare)

    monkeypatch.setattr(Trainer, "take_step", note)
    return taken


@pytest.mark.parametrize("backend", ["device", None, "albumentations"])
def test_the_first_half_of_the_steps_sees_small_crops(split, backend):
    params = make_params(32, augment__backend=backend)
    batches = read_batches(split, params)
    tiles = [32, 32, 64, 64, 64] if backend == "albumentations" else [40, 40, 80, 80, 80]
    assert [batch.tiles.shape[1] for batch in batches] == tiles
    prepare, generator = make_preparation(params.recipe, margin_px=0), torch.Generator().manual_seed(0)
    inputs = [prepare(tiles.permute(0, 3, 1, 2), ids, crop_px, generator)[0] for tiles, ids, crop_px in batches]
    assert [one.shape[-1] for one in inputs] == [32, 32, 64, 64, 64]


@pytest.mark.parametrize("step", range(1, 6))
def test_batches_go_on_where_a_training_was_stopped(split, step):
    params = make_params(32)
    for batch, later in zip(read_batches(split, params)[step:], read_batches(split, params, step), strict=True):
        assert torch.equal(batch.tiles, later.tiles)
        assert torch.equal(batch.label_maps, later.label_maps)
        assert batch.crop_px == later.crop_px


def test_one_size_is_what_it_was_without_a_first_half(split):
    """The draws of a sample depend on its number alone."""
    whole, later = read_batches(split, make_params(64)), read_batches(split, make_params(32))
    assert len(whole) == len(later) == 5
    assert torch.equal(whole[4].tiles, later[4].tiles)


def test_the_images_of_a_step_are_named_in_the_order_of_its_batch(split):
    params = make_params(64, contrast__stretch=False, size__object_diameter_px=0.0)
    recipe = params.recipe
    trainer = make_trainer(0, recipe)
    images = TrainingImages(split, recipe.contrast, recipe.size, recipe.train.balance)
    feed = BatchFeed(images, trainer, recipe, params.housekeeping)
    brightest = {name: int(image.max()) for name, image in split.images()}
    assert len(set(brightest.values())) == 2
    named = []
    for step, batch in enumerate(feed.batches_from(0)):
        names = feed.name_images(step)
        assert len(names) == len(batch.tiles) == 2
        named += names
        for name, tile in zip(names, batch.tiles, strict=True):
            # A tile of 80 of 96 px holds discs, whose brightness is its image's own.
            assert abs(int(tile.max()) - brightest[name]) <= 1
    assert set(named) == {"a", "b"}


def test_what_a_valid_network_sees_has_the_targets_and_weights_of_the_whole_crop(split):
    params = make_params(64, loss__weight_map=True, loss__weight_map_sigma_px=2.0)
    tiles, ids, crop_px = read_batches(split, params)[-1]
    margin_px = 20  # more than anything reaches: 8 px of distance, 6 of the weights
    results = [
        make_preparation(params.recipe, margin)(
            tiles.permute(0, 3, 1, 2), ids, crop_px, torch.Generator().manual_seed(0)
        )
        for margin in (0, margin_px)
    ]
    assert torch.equal(results[0][0], results[1][0])
    for whole, part in zip(results[0][1:], results[1][1:], strict=True):
        assert part.shape[-1] == 64 - 2 * (margin_px - 8)
        inner = whole[..., margin_px:-margin_px, margin_px:-margin_px]
        assert torch.equal(inner, part[..., 8:-8, 8:-8])


def test_a_fold_that_was_trained_is_not_trained_again(split, tmp_path, steps):
    params = tiny_params()
    weights, total = tmp_path / "0.safetensors", params.train.epochs * params.train.steps_per_epoch

    def train(fold=0, resume=tmp_path / "fold0"):
        return train_fold(split, fold, params.recipe, weights, resume, params.housekeeping)

    first = train()
    assert steps == list(range(total))
    before = weights.read_bytes()
    weights.unlink()
    again = train()
    assert steps == list(range(total)), "steps were taken again"
    assert weights.read_bytes() == before
    assert again.history == first.history
    assert again.epoch_seconds == first.epoch_seconds
    train(resume=tmp_path / "elsewhere")
    assert steps == 2 * list(range(total))
    assert weights.read_bytes() == before
    train(fold=1)
    assert weights.read_bytes() != before


def test_what_decides_the_weights_decides_whether_a_training_goes_on(split, tmp_path, steps):
    params, weights = tiny_params(), tmp_path / "0.safetensors"

    def inputs_of(images=split, edit=None, **changes):
        changed = tiny_params(**changes)
        train_fold(images, 0, changed.recipe, weights, tmp_path / "r", changed.housekeeping, edit=edit)
        return read_metadata(weights)["inputs"]

    def freeze(model):
        for parameter in model.net.contracting.parameters():
            parameter.requires_grad_(False)

    usual, total = inputs_of(), params.train.epochs * params.train.steps_per_epoch
    others = [
        inputs_of(train__lr=0.003),
        inputs_of(images=split.select(["a"])),
        inputs_of(edit=freeze),
    ]
    assert len({usual, *others}) == 4
    assert len(steps) == 4 * total
    # What changes no result changes no fingerprint. The state of another training was removed by then.
    assert inputs_of(housekeeping__checkpoint_every_s=1.0) == usual
    assert len(steps) == 5 * total
    assert inputs_of(predict__batch=7) == usual
    assert len(steps) == 5 * total


def test_weights_know_what_they_were_trained_with(split, tmp_path):
    params, weights = tiny_params(), tmp_path / "0.safetensors"
    train_fold(split, 0, params.recipe, weights, tmp_path / "r", params.housekeeping)
    assert len(load_models(tmp_path, [0], params.recipe)) == 1
    changed = tiny_params(size__object_diameter_px=60.0)
    with pytest.raises(InputError, match=r"0\.safetensors: .*size\.object_diameter_px was [\d.]+ and is 60\.0"):
        load_models(tmp_path, [0], changed.recipe)


def test_training_never_reads_an_image_of_its_fold(make_split, make_folds, tmp_path):
    params = tiny_params()
    folds = make_folds(PLACES)
    folded = open_folded(make_split(PLACES, absent="ab"), folds, (0, 1))
    with pytest.raises(InputError, match="no image of the image 'a'"):
        folded.split.image("a")
    train_fold(folded.outside(0), 0, params.recipe, tmp_path / "0.safetensors", tmp_path / "r", params.housekeeping)
    assert (tmp_path / "0.safetensors").is_file()
    # Where one that it learns from is missing, there are no weights.
    with pytest.raises(InputError, match="no image of the image 'a'"):
        train_fold(folded.outside(1), 1, params.recipe, tmp_path / "1.safetensors", tmp_path / "q", params.housekeeping)
    assert not (tmp_path / "1.safetensors").exists()


def test_the_pixels_of_the_own_fold_change_no_weight(make_split, make_folds, tmp_path):
    params, found = tiny_params(), []
    folds = make_folds(PLACES)
    for name in ("whole", "without"):
        prepared = make_split(PLACES, absent="ab" if name == "without" else "", folder=tmp_path / name)
        weights = tmp_path / f"{name}.safetensors"
        outside = open_folded(prepared, folds, (0, 1)).outside(0)
        train_fold(outside, 0, params.recipe, weights, tmp_path / f"{name}.resume", params.housekeeping)
        found.append(read_weights(weights)[0])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_no_image_to_learn_from_is_refused(split, tmp_path):
    params = tiny_params()
    with pytest.raises(InputError, match="no image"):
        train_fold(split.select([]), 0, params.recipe, tmp_path / "w", tmp_path / "r", params.housekeeping)


@pytest.mark.parametrize("crop_px", [60, 66])
def test_a_crop_that_the_network_cannot_take_is_refused_before_anything_is_trained(split, tmp_path, steps, crop_px):
    params = tiny_params(train__crop_px=crop_px + 1, train__start_crop_px=crop_px + 1)
    with pytest.raises(InputError, match="the network cannot take an image"):
        train_fold(split, 0, params.recipe, tmp_path / "w", tmp_path / "r", params.housekeeping)
    assert steps == []
    assert not (tmp_path / "w").exists()


def test_a_watch_is_asked_at_each_epoch_s_end_and_changes_no_weight(split, tmp_path):
    params, seen = tiny_params(), []

    def watch(model, step):
        seen.append(step)
        with torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
        return {"val_map": step / 100}

    trainers = [
        train_fold(split, 0, params.recipe, tmp_path / name, tmp_path / f"{name}.r", params.housekeeping, watch=one)
        for name, one in (("plain", None), ("watched", watch))
    ]
    per_epoch = params.train.steps_per_epoch
    assert seen == [per_epoch * (epoch + 1) for epoch in range(params.train.epochs)]
    assert [row["val_map"] for row in trainers[1].history] == pytest.approx(np.array(seen) / 100)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "watched").read_bytes()
