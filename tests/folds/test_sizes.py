"""Of the images that a network learnt from, some teach how its sizes are read: evenly spread, and with nuclei."""

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.folds import sizes
from pipeline.images.splits import PreparedSplit, spread
from pipeline.unet.runtime import Runtime

CPU = Runtime(torch.device("cpu"), "fp32", channels_last=False)


def test_numbers_are_spread_evenly():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 9).tolist() == [0, 1, 2]
    assert spread(0, 4).tolist() == []


@pytest.mark.parametrize(("most", "looked_at"), [(9, "abcde"), (3, "ace")])
def test_some_images_are_enough(make_split, params, monkeypatch, most, looked_at):
    split, seen = PreparedSplit.open(make_split("abcde")), []

    def note(model, images, size, runtime, recolour):
        seen.extend(images)

    monkeypatch.setattr(sizes, "fit_reader", note)
    size, plain = params.size.model_copy(update={"images": most}), params.contrast.model_copy(update={"stretch": False})
    sizes.learn_sizes(None, split, plain, params.augment, size, CPU, "")
    assert [px for _, px in seen] == pytest.approx(split.select(looked_at).diameters_px)
    for (image, _), name in zip(seen, looked_at, strict=True):
        np.testing.assert_array_equal(image, split.image(name))


def test_without_a_nucleus_there_is_nothing_to_learn(make_split, params):
    nothing = PreparedSplit.open(make_split("abc")).select([])
    with pytest.raises(InputError, match="no training image has a nucleus"):
        sizes.learn_sizes(None, nothing, params.contrast, params.augment, params.size, CPU, "")
