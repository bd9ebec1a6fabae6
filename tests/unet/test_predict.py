"""Prediction: with a network that copies, an image comes back; tiles, views and batches leave no trace."""

import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode

from pipeline.errors import InputError
from pipeline.nuclei.decoding import average_zooms
from pipeline.params import NetworkParams, PredictParams
from pipeline.progress import track
from pipeline.unet.blocks import LengthRule
from pipeline.unet.ensemble import Ensemble
from pipeline.unet.model import NormalizedUNet, build_model
from pipeline.unet.network import Network
from pipeline.unet.predict import Look, predict_images, predict_probabilities, predict_stack, predict_strips
from pipeline.unet.runtime import Runtime
from pipeline.unet.views import D4_VIEWS, views_of

CPU = Runtime(torch.device("cpu"), "fp32", channels_last=False)
FP32_LAST = Runtime(torch.device("cpu"), "fp32", channels_last=True)
BF16 = Runtime(torch.device("cpu"), "bf16", channels_last=True)


class Copy(Network):
    """Logits whose sigmoid is the centre of the image; keeps the shapes that it saw."""

    mean_std = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self, lengths):
        super().__init__()
        self.lengths, self.seen = lengths, []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        margin = self.lengths.margin_px
        height, width = (self.lengths.output_of(length) for length in x.shape[-2:])
        return x[:, :, margin : margin + height, margin : margin + width].logit(eps=1e-6)


class Blur(Network):
    """A network that sees 7 x 7 pixels."""

    mean_std, lengths = Copy.mean_std, LengthRule(8)

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1))
        nn.init.normal_(self.layers[-1].weight, std=0.5)

    def forward(self, x):
        return self.layers(x)


def copier(multiple=1, remainder=0, margin_px=0):
    return NormalizedUNet(Copy(LengthRule(multiple, remainder, margin_px)), {})


def blur_model(seed=0):
    torch.manual_seed(seed)
    return NormalizedUNet(Blur(), {})


def noise(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + phase) * np.cos(columns / 13 - phase) for phase in range(3)]
    return np.round(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def predict_params(**changes):
    values = {"views": "identity", "scales": (1.0,), "tile_px": 64, "overlap_px": 16, "batch": 3}
    return PredictParams(**(values | changes))


def predict(model, image, runtime=CPU, **changes):
    """The mean over zooms (H, W, 3) uint8."""
    models = model if isinstance(model, list) else [model]
    return average_zooms(predict_probabilities(models, image, predict_params(**changes), runtime))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    views=st.sampled_from(["identity", "flips", "d4"]),
    sizes=st.sampled_from([(1, 0, 0), (32, 0, 0), (16, 12, 92)]),
)
def test_a_copying_network_gives_the_image_back(height, width, views, sizes):
    image = noise(height, width)
    np.testing.assert_array_equal(predict(copier(*sizes), image, views=views), image)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 500), (500, 3), (97, 211)])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5), (2.0,)])
def test_images_of_any_size_go_through_a_real_network(size, scales):
    params = NetworkParams(name="vanilla", depth=3, width=2, padding="same", upsampling="nearest", dropout=0.0)
    output = predict(build_model(params), noise(*size), views="d4", scales=scales, runtime=FP32_LAST)
    assert output.shape == (*size, 3)
    assert output.dtype == np.uint8


def test_tiles_leave_no_trace():
    """A network that sees less than the overlap predicts in tiles what it predicts at once."""
    image, model = noise(203, 331), blur_model()
    at_once = predict(model, image, tile_px=400, overlap_px=0).astype(int)
    assert at_once.std() > 5
    in_tiles = predict(model, image).astype(int)
    # At the image's own border the two are padded to other sizes.
    assert np.abs(at_once - in_tiles)[4:-4, 4:-4].max() <= 1


def test_valid_tiles_are_the_whole_exactly():
    """With valid padding a tile never sees its border: tiles without overlap are the whole."""
    params = NetworkParams(name="vanilla", depth=2, width=4, padding="valid", upsampling="transposed", dropout=0.0)
    model, image = build_model(params), noise(150, 170)
    at_once = predict(model, image, tile_px=200, overlap_px=0)
    in_tiles = predict(model, image, tile_px=50, overlap_px=0)
    assert at_once.std() > 1
    assert np.abs(at_once.astype(int) - in_tiles).max() <= 1


@pytest.mark.parametrize("scales", [(0.5,), (2.0,), (0.7, 1.0, 1.4)])
def test_zooms_are_near_the_identity_on_a_smooth_image(scales):
    image = smooth(180, 141)
    error = np.abs(predict(copier(8), image, views="d4", scales=scales).astype(int) - image)
    assert error.mean() < 1.5
    assert error.max() < 12


@pytest.mark.parametrize("zoom", [0.5, 0.63, 1.7])
def test_tiles_of_a_zoomed_image_leave_no_trace(zoom):
    image = smooth(203, 250)
    at_once = predict(blur_model(), image, scales=(zoom,), tile_px=512, overlap_px=0).astype(int)
    in_tiles = predict(blur_model(), image, scales=(zoom,)).astype(int)
    assert at_once.std() > 5
    assert np.abs(at_once - in_tiles)[10:-10, 10:-10].max() <= 1


def test_each_zoom_is_predicted_as_if_alone():
    image, model = noise(300, 90), blur_model()
    params = predict_params(scales=(0.5, 1.0, 1.5))
    together = predict_probabilities([model], image, params, CPU)
    assert together.shape == (3, 300, 90, 3)
    for zoom, part in zip(params.scales, together, strict=True):
        np.testing.assert_array_equal(part, predict(model, image, scales=(zoom,)))


def test_an_image_is_seen_at_its_own_zoom_times_each_of_the_scales():
    images = [(name, noise(60, 44, seed=number)) for number, name in enumerate("abc")]
    zooms = {"a": 2.0, "b": 0.5, "c": 2.0}
    params = predict_params(scales=(1.0, 0.5))
    predicted = list(predict_images([blur_model()], images, params, CPU, lambda image_id, _: zooms[image_id]))
    assert [(each.image_id, each.zoom) for each in predicted] == list(zooms.items())
    for (name, image), each in zip(images, predicted, strict=True):
        scales = tuple(zooms[name] * scale for scale in params.scales)
        alone = predict_probabilities([blur_model()], image, predict_params(scales=scales), CPU)
        np.testing.assert_array_equal(each.probabilities, alone)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (1.4, 0.7, 1.0, 0.5), (0.1, 2.0)])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (330, 30)])
@pytest.mark.parametrize("zoom", [1.0, 0.6])
def test_strips_are_the_mean_over_zooms_to_the_byte(size, scales, zoom):
    image, params = noise(*size), predict_params(scales=scales, views="flips")
    ensemble = Ensemble([blur_model()], views_of("flips"), CPU)
    expected = average_zooms(predict_stack(ensemble, [image], params, zoom)[0])
    strips = list(predict_strips([Look(ensemble, image, params, zoom)]))
    assert all(strip.dtype == np.uint8 and strip.shape[1:] == (size[1], 3) for strip in strips)
    np.testing.assert_array_equal(np.concatenate(strips), expected)
    assert not torch.is_inference_mode_enabled()


def test_strips_of_several_looks_are_their_weighted_mean():
    image, models = noise(150, 90), [blur_model(0), blur_model(1)]
    settings = [predict_params(scales=(1.0, 0.5), views=views) for views in ("identity", "flips")]
    zooms, weights = (1.0, 0.8), (1, 3)
    ensembles = [Ensemble([model], views_of("identity"), CPU) for model in models]
    looks = [Look(*parts) for parts in zip(ensembles, [image] * 2, settings, zooms, weights, strict=True)]
    parts = [
        predict_stack(ensemble, [image], params, zoom)[0]
        for ensemble, params, zoom in zip(ensembles, settings, zooms, strict=True)
    ]
    expected = sum(weight * part.mean(axis=0, dtype=float) for weight, part in zip(weights, parts, strict=True)) / 4
    np.testing.assert_allclose(np.concatenate(list(predict_strips(looks))), expected, atol=0.51)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 0.7)])
def test_the_memory_of_strips_does_not_grow_with_the_height(scales):
    peaks = []
    for height in (1000, 6000):
        image, params = noise(height, 400), predict_params(scales=scales)
        ensemble = Ensemble([copier()], views_of("identity"), CPU)
        tracemalloc.start()
        for _ in predict_strips([Look(ensemble, image, params)]):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The geometry of the tiles grows with the sides; an array as large as one zoom would be 6 MB more.
    assert peaks[1] - peaks[0] <= 2e6


def test_a_strongly_reduced_image_is_cut_into_smaller_tiles():
    """64 px at a tenth would span 640; 4 times its usual side is 256, of which the network sees 26, made 33."""
    model = copier()
    predict(model, noise(1000, 1000), scales=(0.1,))
    assert {max(shape[2:]) for shape in model.net.seen} <= set(range(20, 34))
    image = smooth(900, 800)
    assert np.abs(predict(copier(), image, scales=(0.2,)).astype(int) - image).mean() < 6


def test_the_zoomed_network_sees_a_zoomed_image():
    model = copier(8)
    predict(model, noise(100, 120), scales=(0.5,))
    assert model.net.seen == [(1, 3, 56, 64)]


def test_views_are_turned_back():
    """The mean over D4 of a network that favours one side favours none: it is symmetric as its input is."""
    output = predict(blur_model(), np.full((32, 32, 3), 200, np.uint8), views="d4")
    for turned in (output[::-1], output[:, ::-1], output.swapaxes(0, 1)):
        assert np.abs(turned.astype(int) - output).max() <= 1


def test_models_are_averaged():
    image, models = noise(40, 40), [blur_model(0), blur_model(1)]
    parts = [predict(model, image).astype(float) for model in models]
    assert np.abs(np.mean(parts, axis=0) - predict(models, image)).max() <= 1


def test_images_keep_their_order_and_share_batches():
    shapes = [(32, 32), (40, 24), (32, 32), (32, 32), (200, 90), (40, 24), (32, 32)]
    images = [(f"image{number}", noise(*shape, seed=number)) for number, shape in enumerate(shapes)]
    model = copier(8)
    params = predict_params(batch=4, tile_px=40, overlap_px=8)
    predicted = list(predict_images([model], iter(images), params, CPU))
    assert [each.image_id for each in predicted] == [image_id for image_id, _ in images]
    for (_, image), each in zip(images, predicted, strict=True):
        np.testing.assert_array_equal(each.probabilities[0], image)
    assert model.net.seen[:2] == [(4, 3, 32, 32), (2, 3, 40, 24)]


def test_images_are_read_as_they_are_needed():
    read = []

    def images():
        for number in range(1000):
            read.append(number)
            yield str(number), noise(32, 32)

    next(predict_images([copier()], images(), predict_params(), CPU))
    assert len(read) <= 4 * 3 * 64**2 // 32**2 + 1


def test_a_large_image_is_let_go_before_its_probabilities_are_worked_on():
    held = []

    def images():
        for number in range(2):
            made = [noise(300, 170)]
            held.append(weakref.ref(made[0]))
            yield str(number), made.pop()

    predictions = track(predict_images([copier()], images(), predict_params(), CPU), "predict", 2)
    for name, probabilities, _ in predictions:
        assert len(held) == int(name) + 1  # the next is not read yet
        assert held[-1]() is None
        predicted = weakref.ref(probabilities)
        del probabilities
        assert predicted() is None


def test_a_small_image_is_one_small_tile():
    model = copier(32)
    predict(model, noise(50, 64), tile_px=512, overlap_px=64)
    assert model.net.seen == [(1, 3, 64, 64)]


def test_batches_do_not_change_the_result():
    image, model = noise(150, 150), blur_model()
    np.testing.assert_array_equal(predict(model, image, batch=1), predict(model, image, batch=7))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
def test_memory_grows_with_the_sides_and_not_with_the_area(scales, monkeypatch):
    """Besides image and output, an image of 16 times the area takes about 4 times the memory."""
    held = []
    original = torch.zeros

    def counting(*args, **kwargs):
        tensor = original(*args, **kwargs)
        held.append(tensor.numel())
        return tensor

    def largest(side):
        held.clear()
        monkeypatch.setattr(torch, "zeros", counting)
        tracemalloc.start()
        image = noise(side, side)
        predict_probabilities([copier(8)], image, predict_params(scales=scales), CPU)
        peak = tracemalloc.get_traced_memory()[1] - (1 + len(scales)) * image.nbytes
        tracemalloc.stop()
        return max(held), peak

    (band, peak), (large_band, large_peak) = largest(250), largest(1000)
    assert large_band <= 5 * band
    assert large_peak <= 5 * peak


def test_bf16_channels_last_is_near_fp32():
    params = NetworkParams(name="vanilla", depth=3, width=8, padding="same", upsampling="bilinear", dropout=0.0)
    torch.manual_seed(0)
    model, image = build_model(params), noise(70, 90)
    exact = predict(model, image).astype(int)
    rounded = predict(model, image, BF16).astype(int)
    assert exact.std() > 5
    assert np.abs(exact - rounded).mean() < 3


def test_networks_are_evaluated_not_trained():
    params = NetworkParams(name="vanilla", depth=2, width=4, padding="same", upsampling="nearest", dropout=0.5)
    model, image = build_model(params).train(), noise(30, 30)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    np.testing.assert_array_equal(predict(model, image), predict(model, image))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_an_image_of_another_kind_is_named(image):
    with pytest.raises(InputError, match=r"nucleus7: .*uint8 RGB"):
        list(predict_images([copier()], [("nucleus7", image)], predict_params(), CPU))


def test_networks_must_fit_one_another():
    with pytest.raises(InputError, match="0 networks"):
        predict([], noise(4, 4))
    with pytest.raises(InputError, match="all built by one `unet`"):
        predict([copier(1), copier(2)], noise(4, 4))


def test_networks_and_views_stay_on_the_device(monkeypatch):
    monkeypatch.setattr(NormalizedUNet, "to", lambda model, *args, **kwargs: model)  # fake weights cannot be moved
    params = NetworkParams(name="vanilla", depth=3, width=2, padding="same", upsampling="nearest", dropout=0.0)
    with FakeTensorMode(), torch.device("cuda"):
        ensemble = Ensemble([build_model(params)], D4_VIEWS, Runtime(torch.device("cuda"), "fp32", channels_last=False))
        assert ensemble.predict(torch.rand(2, 3, 32, 48)).device.type == "cuda"


def test_no_images_give_no_predictions():
    assert list(predict_images([copier()], [], predict_params(), CPU)) == []


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.4)])
def test_progress_is_what_was_really_done(scales):
    """In all the number of images, and at once no more than a row of tiles, of which 64 px at half size show 128."""
    images = [(name, noise(300, 40)) for name in "ab"]
    parts = []
    for _ in predict_images([copier()], images, predict_params(scales=scales), CPU, advance=parts.append):
        pass
    assert sum(parts) == pytest.approx(2)
    assert min(parts) > 0
    assert max(parts) <= len(images) / len(scales) * 64 / min(scales) / 300


def test_progress_comes_before_the_first_prediction_is_whole():
    parts = []
    iterator = predict_images([copier()], [("a", noise(300, 40))], predict_params(), CPU, advance=parts.append)
    next(iterator)
    assert len(parts) >= 5  # rows of tiles of 64 px that overlap by 16
    assert sum(parts) == pytest.approx(1)
