"""Signals of how well nuclei were found: by hand, and none of an image without nuclei."""

import numpy as np
import pytest

from pipeline.nuclei.candidates import FEATURES
from pipeline.nuclei.signals import NAMES, measure_signals, tabulate_signals

FEATURE = FEATURES.index("agreement")


def test_signals_by_hand():
    features = np.zeros((3, len(FEATURES)), np.float32)
    features[:, FEATURE] = 0.9, 0.1, 0.5
    signals = measure_signals(features, np.array([1.2, 0.9, 0.6]), [0, 2])  # a worth above 1 counts as 1
    assert tuple(signals) == NAMES
    assert signals["worth"] == pytest.approx(0.8)
    assert signals["worth_spread"] == pytest.approx(0.2)
    assert signals["agreement"] == pytest.approx(0.7)
    assert signals["roundness"] == 0


def test_an_image_without_nuclei_has_none():
    assert set(measure_signals(np.ones((2, len(FEATURES)), np.float32), np.array([0.1, 0.2]), []).values()) == {0.0}


def test_the_table_has_the_images_that_have_signals():
    table = tabulate_signals([("a", dict.fromkeys(NAMES, 0.5)), ("b", None)])
    assert table.columns.tolist() == ["image_id", *NAMES]
    assert table["image_id"].tolist() == ["a"]
    assert tabulate_signals([]).columns.tolist() == ["image_id", *NAMES]
