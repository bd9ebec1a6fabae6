"""Diameters and zooms, by hand."""

import numpy as np
import pytest

from pipeline.diameter import equivalent_diameter, zooms_to_size


@pytest.fixture
def size(params):
    return params.size.model_copy(update={"object_diameter_px": 30.0, "min_zoom": 0.25, "max_zoom": 4.0})


def test_the_diameter_of_a_disc_is_its_own():
    assert equivalent_diameter(np.pi * 100) == pytest.approx(20)
    assert equivalent_diameter(np.array([0, np.pi])) == pytest.approx([0, 2])


def test_zooms_by_hand(size):
    """30 px are wished for; of 0 px nothing is known; the last two meet the bounds."""
    assert zooms_to_size(np.array([20, 10, 0, 20_000, 1.0]), size).tolist() == [1.5, 3.0, 1.0, 0.25, 4.0]


def test_without_a_size_nothing_is_zoomed(size):
    native = size.model_copy(update={"object_diameter_px": 0.0})
    assert zooms_to_size(np.array([20, 0, 1e6]), native).tolist() == [1.0, 1.0, 1.0]
