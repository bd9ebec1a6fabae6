"""The second level's cross-validation: no model is taught by the images that it chooses for."""

import numpy as np
import pytest

from pipeline.folds import second_level
from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.finder import CandidateFinder
from pipeline.folds.predictions import Predictions, write_predictions
from pipeline.folds.second_level import find_held_out, rate_images
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.decoding import Decoding
from pipeline.nuclei.metric import score
from pipeline.unet.predict import Prediction

FOLDS = {"d": 1, "a": 0, "c": 1, "b": 0}  # in no order of names
DECODINGS = dict.fromkeys((0, 1), Decoding(0.5, 1.0, 0.5, 20))


@pytest.fixture
def select(params):
    changes = {"trees": 10, "min_worth": 0.0, "leaf_candidates": 2, "seed_threshold": (0.5,), "mask_threshold": (0.5,)}
    return params.select.model_copy(update=changes)


@pytest.fixture
def rated(make_split, tmp_path, select):
    """Return a split, predictions of it that are right, and the store of their candidates."""
    split = PreparedSplit.open(make_split("abcd"))
    channels = ((name, (label_map > 0).astype(np.uint8) * 250) for name, label_map in split.label_maps())
    predictions = (Prediction(name, np.stack([one, 0 * one, one], axis=-1)[None], 1.0) for name, one in channels)
    write_predictions(tmp_path / "p.npz", predictions)
    read = Predictions([tmp_path / "p.npz"])
    write_candidates(tmp_path / "c.npz", rate_images(read, split, CandidateFinder((1.0,), 17.0, select), 1))
    return split, read, CandidateStore(tmp_path / "c.npz")


def test_models_are_fitted_on_the_other_folds_before_the_first_image_comes(rated, select, monkeypatch):
    _, predictions, store = rated
    fit_second_level, taught = second_level.fit_second_level, []

    def note(given, parts, params):
        taught.extend(parts)
        return fit_second_level(given, parts, params)

    monkeypatch.setattr(second_level, "fit_second_level", note)
    found = find_held_out(store, predictions, FOLDS, DECODINGS, select)
    # Nothing was asked for yet: a bar around what comes now shows the choosing alone.
    assert [sorted(part) for part in taught] == [["c", "d"], ["a", "b"]]
    assert [name for name, *_ in found] == list(FOLDS)
    assert len(taught) == 2


def test_right_predictions_are_chosen_right(rated, select):
    split, predictions, store = rated
    for name, label_map, signals in find_held_out(store, predictions, FOLDS, DECODINGS, select):
        assert score(split.label_map(name), label_map) == 1
        assert signals is not None
        assert signals["agreement"] == 1


def test_an_image_that_has_no_candidates_is_decoded(rated, select, tmp_path):
    split, predictions, _ = rated
    finder = CandidateFinder((1.0,), 17.0, select)
    write_candidates(tmp_path / "fewer.npz", rate_images(predictions, split.select("abd"), finder, 1))
    store = CandidateStore(tmp_path / "fewer.npz")
    found = {name: rest for name, *rest in find_held_out(store, predictions, FOLDS, DECODINGS, select)}
    assert sorted(found) == list("abcd")
    label_map, signals = found["c"]
    assert score(split.label_map("c"), label_map) == 1
    assert signals is None


def test_without_trees_nothing_is_rated_and_one_decoding_finds_all(rated, select):
    split, predictions, store = rated
    none = select.model_copy(update={"trees": 0})
    assert list(rate_images(predictions, split, CandidateFinder((1.0,), 17.0, none), 1)) == []
    none_found = DECODINGS | {0: Decoding(0.5, 1.0, 0.5, 10**6)}
    found = list(find_held_out(store, predictions, FOLDS, none_found, none))
    assert {name: int(label_map.max()) > 0 for name, label_map, _ in found} == {
        name: fold == 1 for name, fold in FOLDS.items()
    }
    assert all(signals is None for *_, signals in found)
