"""Cross-validation of weighed members: each fold's nuclei are those of its own weights, and blind to its own truth."""

import numpy as np
import pytest

from pipeline.folds.blend import Members, Weights
from pipeline.folds.cross_validation import cross_validate, cross_validate_blend
from pipeline.folds.finder import CandidateFinder
from pipeline.images.splits import PreparedSplit

NAMES = "abcdef"
FOLD_OF = {name: number % 3 for number, name in enumerate(NAMES)}
BOTH = {"one": 1, "other": 2}


def blur(label_map, level, seed):
    """Return probabilities at one zoom of a network that is unsure where nuclei end."""
    noise = np.random.default_rng(seed).integers(0, 60, label_map.shape)
    foreground = np.where(label_map > 0, level, 20) + noise
    return np.stack([foreground, noise, np.where(label_map > 0, 200, 0)], axis=-1).clip(0, 255).astype(np.uint8)[None]


@pytest.fixture
def split(make_split):
    return PreparedSplit.open(make_split(NAMES))


@pytest.fixture
def members(split):
    stored = {
        name: {image_id: (blur(label_map, level, number), 1.0) for number, (image_id, label_map) in pairs}
        for name, level, pairs in (
            ("one", 150, [*enumerate(split.label_maps())]),
            ("other", 190, [*enumerate(split.label_maps(), 50)]),
        )
    }
    return Members(stored, dict.fromkeys(stored, 17.0), 17.0)


@pytest.fixture
def settings(params):
    changes = {"trees": 10, "min_worth": 0.0, "leaf_candidates": 2, "seed_threshold": (0.5,), "mask_threshold": (0.5,)}
    select = params.select.model_copy(update=changes)
    return params.decode, CandidateFinder((1.0,), 17.0, select)


def found(held_out):
    return {name: label_map for name, label_map, _ in held_out.found}


@pytest.mark.parametrize("on_all", [{"one": 1}, {"other": 5}])
def test_each_fold_is_found_as_if_its_weights_were_those_of_all(split, members, settings, tmp_path, on_all):
    of_fold = {0: {"one": 1}, 1: {"other": 1}, 2: BOTH}
    weights = Weights(on_all, of_fold)
    held_out = cross_validate_blend(members, weights, split, FOLD_OF, *settings, tmp_path / "out" / "all.npz", 1)
    nuclei = found(held_out)
    assert list(nuclei) == split.image_ids
    for fold, picks in of_fold.items():
        path = tmp_path / f"{fold}.npz"
        alone = cross_validate(members.blend(picks), split, FOLD_OF, *settings, path, 1)
        assert held_out.fit.on_others[fold] == alone.fit.on_others[fold]
        label_maps = found(alone)
        for place, name in enumerate(split.image_ids):
            if FOLD_OF[name] == fold:
                np.testing.assert_array_equal(nuclei[name], label_maps[name])
                one, other = held_out.decoded[place], alone.decoded[place]
                np.testing.assert_array_equal(one.true_positives, other.true_positives)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["all.npz"]


def test_weights_that_are_all_alike_are_one_cross_validation(split, members, settings, tmp_path):
    weights = Weights(BOTH, dict.fromkeys(range(3), BOTH))
    held_out = cross_validate_blend(members, weights, split, FOLD_OF, *settings, tmp_path / "a.npz", 1)
    alone = cross_validate(members.blend(BOTH), split, FOLD_OF, *settings, tmp_path / "b.npz", 1)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert held_out.fit == alone.fit
    for one, other in zip(held_out.found, alone.found, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
