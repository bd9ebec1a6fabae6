"""Stored predictions and candidates come back as they were written, and what is missing is named."""

import pickle

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.predictions import Predictions, write_predictions
from pipeline.nuclei.candidates import FEATURES, find_candidates
from pipeline.nuclei.decoding import Decoding
from pipeline.unet.predict import Prediction

DECODINGS = [Decoding(0.5, 1.0, 0.5, 5), Decoding(0.8, 1.0, 0.65, 5)]


def draw_predictions(names, seed=0):
    """Return predictions at two zooms of images of different sizes, each with a zoom that no decimal writes exactly."""
    rng = np.random.default_rng(seed)
    shapes = [(2, 7 + number, 9, 3) for number in range(len(names))]
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    return [
        Prediction(name, array, 2 ** (n / 8 + 0.1)) for n, (name, array) in enumerate(zip(names, arrays, strict=True))
    ]


def test_predictions_of_several_packs_come_back_as_one_mapping(tmp_path):
    # Ids that hold what the names of arrays are made of.
    first, second = draw_predictions(["a", "stack.03", "b.zoom"]), draw_predictions(["c.probabilities"], seed=1)
    for fold, predictions in enumerate((first, second)):
        write_predictions(tmp_path / f"{fold}.npz", iter(predictions))
    read = Predictions(tmp_path / f"{fold}.npz" for fold in (0, 1))
    assert set(read) == {"a", "stack.03", "b.zoom", "c.probabilities"}
    assert len(read) == 4
    for mapping in (read, pickle.loads(pickle.dumps(read))):
        for name, probabilities, zoom in first + second:
            stored, stored_zoom = mapping[name]
            assert stored.dtype == np.uint8
            assert np.array_equal(stored, probabilities)
            assert stored_zoom == zoom
            assert isinstance(stored_zoom, float)


def test_no_prediction_makes_a_pack_that_is_valid_and_empty(tmp_path):
    write_predictions(tmp_path / "0.npz", [])
    assert list(Predictions([tmp_path / "0.npz"])) == []


def test_a_missing_prediction_is_refused_by_name(tmp_path):
    write_predictions(tmp_path / "0.npz", draw_predictions(["a"]))
    with pytest.raises(InputError, match="image absent: it has no prediction; run the stage"):
        Predictions([tmp_path / "0.npz"])["absent"]
    with pytest.raises(InputError, match=r"1\.npz"):
        Predictions([tmp_path / "0.npz", tmp_path / "1.npz"])


def test_exactly_the_packs_that_are_named_are_read(tmp_path):
    """A run whose `folds.ids` were shortened leaves the files of the dropped folds where they are."""
    for fold, name in enumerate("abc"):
        write_predictions(tmp_path / f"{fold}.npz", draw_predictions([name], seed=fold))
    read = Predictions(tmp_path / f"{fold}.npz" for fold in (0, 1))
    assert set(read) == {"a", "b"}
    with pytest.raises(InputError, match="image c: it has no prediction"):
        read["c"]


def test_a_write_that_breaks_off_leaves_the_pack_of_before(tmp_path):
    path = tmp_path / "0.npz"
    write_predictions(path, draw_predictions(["a"]))
    before = path.read_bytes()

    def break_off():
        yield draw_predictions(["b"])[0]
        raise InputError("image c: damaged")

    with pytest.raises(InputError, match="image c"):
        write_predictions(path, break_off())
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["0.npz"]


def find_in_discs(seed):
    """Return the candidates of two discs at one zoom."""
    rows, columns = np.mgrid[:40, :60]
    discs = [(rows - 20) ** 2 + (columns - centre) ** 2 < (6 + seed) ** 2 for centre in (18, 42)]
    foreground = 250 * np.logical_or(*discs)
    probabilities = np.stack([foreground, 0 * foreground, foreground], axis=-1).astype(np.uint8)
    return find_candidates(probabilities[None], (1.0,), DECODINGS, 14.0)


def test_candidates_come_back_with_their_worth(tmp_path):
    rated = [(name, find_in_discs(seed)) for seed, name in enumerate(["a", "stack.03"])]
    worth = [np.linspace(0, 1, len(candidates), dtype=np.float32) for _, candidates in rated]
    write_candidates(tmp_path / "c.npz", ((*pair, each) for pair, each in zip(rated, worth, strict=True)))
    store = CandidateStore(tmp_path / "c.npz")
    assert set(store) == {"a", "stack.03"}
    for (name, candidates), expected in zip(rated, worth, strict=True):
        assert name in store
        read = store.candidates(name)
        assert len(read) == len(candidates) > 0
        assert read.features.shape == (len(candidates), len(FEATURES))
        for part in ("features", "runs", "ends", "shape"):
            stored, written = getattr(read, part), getattr(candidates, part)
            assert stored.dtype == written.dtype
            assert np.array_equal(stored, written)
        for index in range(len(candidates)):
            assert np.array_equal(read.pixels_of(index), candidates.pixels_of(index))
        features, stored_worth = store.lesson(name)
        assert np.array_equal(features, candidates.features)
        assert np.array_equal(stored_worth, expected)


def test_an_image_without_an_entry_is_not_in_the_store(tmp_path):
    write_candidates(tmp_path / "c.npz", [("a", find_in_discs(0), np.zeros(2, np.float32))])
    store = CandidateStore(tmp_path / "c.npz")
    assert "absent" not in store
    assert "a.features" not in store
    with pytest.raises((InputError, KeyError), match="absent"):
        store.candidates("absent")
    with pytest.raises(InputError, match=r"d\.npz"):
        CandidateStore(tmp_path / "d.npz")
