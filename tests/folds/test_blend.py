"""Predictions of several members as one: by hand, and the one member that leaves all as it is."""

import json
import math

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.folds.blend import Members, OutOfFold, Weights, average_zoom, equal_weights, read_weights
from pipeline.unet.prediction import average


def full(value):
    return np.full((1, 2, 2, 3), value, np.uint8)


def members(wanted_px=24.0, **known_px):
    stored = {"a": {"x": (full(10), 2.0), "y": (full(250), 1.0)}, "b": {"x": (full(30), 1.0), "y": (full(0), 0.5)}}
    return Members(stored, {"a": 24.0, "b": 24.0} | known_px, wanted_px)


def test_a_mean_by_weights():
    parts = [full(0), full(255), full(100)]
    np.testing.assert_array_equal(average(parts, [1, 1, 2]), full(114))  # (0 + 255 + 200) / 4 = 113.75
    assert average(parts, [1, 1, 2]).dtype == np.uint8
    np.testing.assert_array_equal(average([full(255)] * 3, [2, 5, 1]), full(255))


def test_one_member_is_handed_on_as_it_is():
    blend = members().blend({"b": 3})
    assert blend["x"][0] is members().stored["b"]["x"][0] or np.array_equal(blend["x"][0], full(30))
    assert blend["x"][1] == 1.0
    assert (set(blend), len(blend)) == ({"x", "y"}, 2)


def test_members_are_averaged_and_so_are_their_zooms_in_octaves():
    probabilities, zoom = members().blend({"a": 1, "b": 1})["x"]
    np.testing.assert_array_equal(probabilities, full(20))
    assert zoom == pytest.approx(math.sqrt(2))
    assert members().blend({"a": 3, "b": 1}).zoom("x") == pytest.approx(2**0.75)


def test_a_member_that_knows_larger_nuclei_asks_for_larger_zooms():
    """Of 12 px: those who know 24 zoom by 2, those who know 48 by 4; a zoom to 24 is asked for."""
    assert average_zoom([2.0, 4.0], [1, 1], [24.0, 48.0], 24.0) == pytest.approx(2.0)
    assert average_zoom([2.0], [1], [24.0], 24.0) == 2.0  # exactly
    assert average_zoom([4.0], [7], [48.0], 24.0) == 2.0


def test_a_member_of_native_size_says_nothing_of_zooms():
    assert average_zoom([1.0, 4.0], [1, 1], [0.0, 24.0], 24.0) == 4.0
    assert average_zoom([1.0], [1], [0.0], 24.0) == 1.0
    assert average_zoom([2.0], [1], [24.0], 0.0) == 1.0


def test_out_of_fold_each_image_has_the_weights_of_its_own_fold():
    weights = Weights({"a": 1}, {0: {"a": 1}, 1: {"b": 1}})
    predictions = OutOfFold(members(), weights, {"x": 0, "y": 1})
    np.testing.assert_array_equal(predictions["x"][0], full(10))
    np.testing.assert_array_equal(predictions["y"][0], full(0))
    assert (predictions.zoom("x"), predictions.zoom("y")) == (2.0, 0.5)
    assert list(predictions) == ["x", "y"]


def test_weights_come_back_and_what_is_none_is_refused(tmp_path):
    weights, path = equal_weights(["a", "b"], [0, 1]), tmp_path / "decoding.json"
    assert weights == ({"a": 1, "b": 1}, {0: {"a": 1, "b": 1}, 1: {"a": 1, "b": 1}})
    folds = {str(fold): picks for fold, picks in weights.on_others.items()}
    path.write_text(json.dumps({"members": {"all": weights.on_all, "folds": folds}}))
    assert read_weights(path, "ab", [0, 1]) == weights
    with pytest.raises(InputError, match=r"no weights of members \(b is no member\)"):
        read_weights(path, "a")
    with pytest.raises(InputError, match=r"no weights of members \(none for fold 2\)"):
        read_weights(path, "ab", [0, 1, 2])
    for faulty in (
        {},
        {"members": {"all": {"a": 0}, "folds": {}}},
        {"members": {"all": {}, "folds": {}}},
        {"members": 3},
    ):
        path.write_text(json.dumps(faulty))
        with pytest.raises(
            InputError, match=r"decoding\.json: no weights of members .*; run the stage `evaluate` again"
        ):
            read_weights(path, "ab")
