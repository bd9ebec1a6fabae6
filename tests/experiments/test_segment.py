"""The outlines that `predict` draws, against scikit-image's."""

import numpy as np
from skimage.segmentation import find_boundaries

from pipeline.experiments.segment import draw_outlines


def test_outlines_are_the_inner_boundaries_of_a_tall_image():
    label_map = np.kron(np.random.default_rng(0).integers(0, 4, (130, 12)), np.ones((5, 5), int)).astype(np.int32)
    image = np.full((*label_map.shape, 3), 7, np.uint8)
    drawn = draw_outlines(image, label_map)
    np.testing.assert_array_equal((drawn != 7).any(axis=2), find_boundaries(label_map, connectivity=1, mode="inner"))
    assert (image == 7).all()
