"""What lies in a pack in fewer bytes comes back as it was."""

import numpy as np
import pytest

from pipeline.images.compact import compact_image, compact_labels, expand_image, expand_labels

rng = np.random.default_rng(0)
GREY = np.repeat(rng.integers(0, 256, (5, 7, 1), dtype=np.uint8), 3, axis=2)
ONE_PIXEL_RED = GREY.copy()
ONE_PIXEL_RED[4, 6, 0] ^= 1
ONE_PIXEL_BLUE = GREY.copy()
ONE_PIXEL_BLUE[0, 3, 2] ^= 128


@pytest.mark.parametrize("image", [GREY, ONE_PIXEL_RED, ONE_PIXEL_BLUE, GREY[:1, :1], GREY[:, ::2]])
def test_an_image_comes_back_as_it_was(image):
    stored = compact_image(image)
    assert stored.shape[2] == (1 if (image == image[..., :1]).all() else 3)
    image_again = expand_image(stored)
    assert (image_again.dtype, image_again.tolist()) == (np.uint8, image.tolist())


@pytest.mark.parametrize(("most", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_a_label_map_comes_back_as_it_was(most, dtype):
    label_map = np.array([[0, most], [most // 2, 1 if most else 0]], np.uint16)
    stored = compact_labels(label_map)
    assert stored.dtype == dtype
    assert (expand_labels(stored).dtype, expand_labels(stored).tolist()) == (np.uint16, label_map.tolist())
