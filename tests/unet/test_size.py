"""Size readers: they find the size of discs on whatever zoom, and survive the disk."""

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.params import NetworkParams, SizeParams
from pipeline.unet.model import build_model
from pipeline.unet.runtime import Runtime
from pipeline.unet.size import (
    SizeReader,
    bound_zoom,
    extract_features,
    fit_reader,
    load_reader,
    read_octaves,
    save_reader,
)

OBJECT_PX = 14.0
PARAMS = SizeParams(
    object_diameter_px=OBJECT_PX, window_px=96, images=9, octaves=1.5, looks=7, steps=2, min_zoom=0.2, max_zoom=4.0,
)  # fmt: skip
CPU = Runtime(torch.device("cpu"), "fp32", channels_last=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    params = NetworkParams(name="vanilla", depth=4, width=8, padding="same", upsampling="nearest", dropout=0.0)
    return build_model(params).eval()


def draw_discs(diameter_px, seed, shape=(150, 170)):
    """An image of discs of one diameter on a grid, with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    pitch = 1.6 * diameter_px
    top, left = rng.uniform(0, 9, 2)
    row, column = (rows + top) % pitch - pitch / 2, (columns + left) % pitch - pitch / 2
    image = np.where(np.hypot(row, column) <= diameter_px / 2, 180.0, 30.0) + rng.normal(0, 5, shape)
    return np.repeat(image.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def reader(model):
    sizes = np.geomspace(7, 30, 16)
    images = [(draw_discs(size, number), float(size)) for number, size in enumerate(sizes)]
    return fit_reader(model, images, PARAMS, CPU)


@pytest.mark.parametrize("diameter_px", [8.5, 13.0, 19.0, 27.0])
def test_the_zoom_brings_unseen_discs_to_the_wanted_size(model, reader, diameter_px):
    octaves = read_octaves(model, reader, draw_discs(diameter_px, 100), PARAMS, CPU)
    assert abs(octaves + np.log2(diameter_px / OBJECT_PX)) < 0.35


@pytest.mark.parametrize(
    ("shape", "lowest"),
    [((140, 40), 0.2), ((50, 20), 14 / 50), ((9, 9), 1.0)],  # of discs of 14 px, the image itself would be smaller
)
def test_an_image_is_reduced_no_further_than_to_one_nucleus(model, shape, lowest):
    assert bound_zoom((*shape, 3), PARAMS) == (pytest.approx(lowest), 4.0)
    image = np.zeros((*shape, 3), np.uint8)
    features = len(extract_features(model, image, 1.0, 96, CPU))
    large = SizeReader(np.zeros(features), 20.0)
    assert read_octaves(model, large, image, PARAMS, CPU) == pytest.approx(np.log2(lowest))


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (150, 31)])
def test_images_of_any_size_have_features(model, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for zoom in (0.2, 1.0, 4.0):
        features = extract_features(model, image, zoom, 96, CPU)
        assert features.shape == (2 * (32 + 64),)
        assert np.isfinite(features).all()


def test_the_layout_of_images_is_the_runtime_s(model):
    image, seen = draw_discs(14, 0), []
    handle = model.net.contracting[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows = Runtime(torch.device("cpu"), "fp32", channels_last=False)
    first, second = (extract_features(model, image, 1.0, 96, runtime) for runtime in (CPU, rows))
    handle.remove()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[1].is_contiguous()
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


def test_a_reader_survives_the_disk(reader, tmp_path):
    save_reader(reader, tmp_path / "0.safetensors")
    loaded = load_reader(tmp_path / "0.safetensors")
    np.testing.assert_array_equal(loaded.weight, reader.weight)
    assert loaded.bias == reader.bias


@pytest.mark.parametrize("content", [None, b"", b"not a tensor"])
def test_a_damaged_reader_is_named(tmp_path, content):
    path = tmp_path / "0.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"0\.safetensors.*stage `size`"):
        load_reader(path)


def test_a_reader_that_saw_other_colours_reads_them_better(model):
    """Discs of any size on a background of any brightness: fitted in one brightness alone, it is misled by another."""
    sizes = np.geomspace(7, 30, 16)
    images = [(draw_discs(size, number), float(size)) for number, size in enumerate(sizes)]
    inverted = fit_reader(model, images, PARAMS, CPU, lambda window: 1 - window)
    plain = fit_reader(model, images, PARAMS, CPU)

    def error(reader, images):
        octaves = [
            read_octaves(model, reader, image, PARAMS, CPU) + np.log2(size / OBJECT_PX) for image, size in images
        ]
        return np.abs(octaves).mean()

    negatives = [(255 - image, size) for image, size in images]
    assert error(inverted, negatives) < 0.3 < error(plain, negatives)
    assert error(inverted, images) < 0.3


def test_nothing_to_fit_on_is_refused(model):
    with pytest.raises(InputError, match="no training image"):
        fit_reader(model, [], PARAMS, CPU)
