"""The watershed of a few nuclei: scikit-image's own, to the last pixel."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.segmentation import watershed

from pipeline.nuclei.watershed import flood


@pytest.mark.parametrize("seed", range(8))
def test_flooding_is_scikit_image_s_watershed_to_the_last_pixel(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 60, 2))
    # Levels of 1/8: many pixels are equal, and which of them comes first decides.
    distance = (gaussian_filter(rng.random(shape), 2) * 8).round().astype(np.float32) / 8
    mask = gaussian_filter(rng.random(shape), 3) > 0.48
    seeds = np.where(mask & (rng.random(shape) < 0.02), rng.integers(1, 9, shape), 0).astype(np.int32)
    expected = watershed(-distance, seeds, mask=mask)
    np.testing.assert_array_equal(flood(distance, seeds, mask), expected)
