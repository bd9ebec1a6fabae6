"""The zoom of an image: what is read off features and what is measured on nuclei, network by network."""

import numpy as np
import pytest
import torch

from pipeline.folds import zoom as zoom_module
from pipeline.folds.networks import Folds
from pipeline.folds.zoom import find_zoom, measure_diameter
from pipeline.params import SizeParams
from pipeline.unet.blocks import LengthRule
from pipeline.unet.runtime import Runtime
from pipeline.unet.size import SizeReader, bound_zoom

PARAMS = SizeParams(
    object_diameter_px=16.0, window_px=160, images=9, octaves=1.0, looks=2, steps=1, min_zoom=0.25, max_zoom=4.0
)  # fmt: skip
CPU = Runtime(torch.device("cpu"), "fp32", channels_last=False)


class Threshold(torch.nn.Module):
    """A network that takes what is bright for nuclei, and sees one feature, which never changes."""

    def __init__(self, margin_px=0):
        super().__init__()
        self.margin_px = margin_px
        self.lengths = LengthRule(32, 0, margin_px)

    def forward(self, x):
        inner = x[..., self.margin_px : x.shape[-2] - self.margin_px, self.margin_px : x.shape[-1] - self.margin_px]
        bright = 40 * (inner.mean(dim=1, keepdim=True) - 0.5)
        return torch.cat([bright, torch.full_like(bright, -9.0), bright], dim=1)

    def encode(self, x):
        return [torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)]


def reader_of(diameter_px):
    """A reader that names one size in px, whatever it sees."""
    return SizeReader(np.zeros(4), float(np.log2(diameter_px)))


def draw_discs(diameter_px, side=200, pitch=48):
    rows, columns = np.indices((side, side)) % pitch - pitch // 2
    image = np.where(np.hypot(rows, columns) <= diameter_px / 2, 255, 0).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2)


@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("diameter_px", [16, 30])
def test_nuclei_are_measured_in_px_of_the_image_at_any_zoom(diameter_px, zoom):
    found = measure_diameter(Threshold(), draw_discs(diameter_px), zoom, PARAMS, CPU)
    assert found == pytest.approx(diameter_px, rel=0.08)


def test_nuclei_that_the_edge_cuts_do_not_count_where_others_are_whole():
    image = draw_discs(30, side=144)  # 3 x 3 whole discs
    image[:, :9] = image[:, 30:39]  # and slices at the left edge
    assert measure_diameter(Threshold(), image, 1.0, PARAMS, CPU) == pytest.approx(30, rel=0.08)
    alone = np.zeros_like(image)
    alone[30:60, :20] = 255
    assert measure_diameter(Threshold(), alone, 1.0, PARAMS, CPU) > 0


def test_specks_and_pieces_do_not_count():
    image = draw_discs(30)
    image[4:196:24, 4:196:24] = 255  # lone pixels
    for row in range(6, 190, 48):
        image[row : row + 6, 6:190:48] = image[row : row + 6, 7:190:48] = image[row : row + 6, 8:190:48] = 255
    assert measure_diameter(Threshold(), image, 1.0, PARAMS, CPU) == pytest.approx(30, rel=0.08)


@pytest.mark.parametrize("window_px", [128, 150])
def test_a_network_with_valid_padding_is_measured_inside(window_px):
    """What is mirrored beyond the window, up to a length that the network takes, is not measured."""
    image = draw_discs(24)
    params = PARAMS.model_copy(update={"window_px": window_px})
    image[:, (200 + window_px) // 2 - 16 :] = 255  # would be one large nucleus
    assert measure_diameter(Threshold(margin_px=16), image, 1.0, params, CPU) == pytest.approx(24, rel=0.08)


def test_a_window_of_which_valid_padding_leaves_nothing_is_not_measured():
    assert measure_diameter(Threshold(margin_px=16), draw_discs(24, side=40), 1.0, PARAMS, CPU) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (150, 31)])
def test_images_of_any_size_have_a_zoom_within_the_bounds(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    lowest, highest = bound_zoom(image.shape, PARAMS)
    for margin_px in (0, 16):
        for diameter_px in (2, 300):
            folds = Folds([Threshold(margin_px)], [reader_of(diameter_px)])
            assert lowest <= find_zoom(folds, image, PARAMS, CPU) <= highest


def test_each_of_two_measurements_has_half_the_say_beside_what_was_before():
    # Read: 16 px at whatever zoom, that is zoom 1 asked for at each; measured: 32 px, zoom 1/2. In octaves, from 0 half
    # the way to -1, and half of what is left.
    image = draw_discs(32, pitch=64, side=256)
    assert find_zoom(Folds([Threshold()], [reader_of(16)]), image, PARAMS, CPU) == pytest.approx(2**-0.75, rel=0.05)


def test_nuclei_are_measured_at_the_zoom_that_was_found_last(monkeypatch):
    """Read: zoom 1. Measured there 32 px, zoom 1/2: so 2^-0.5 is next; measured there 8 px, zoom 2: (-0.5 + 1) / 2."""
    asked = []
    monkeypatch.setattr(zoom_module, "read_octaves", lambda *_: 0.0)
    monkeypatch.setattr(zoom_module, "measure_diameter", lambda *a: asked.append(a[2]) or (32.0 if a[2] == 1 else 8.0))
    found = find_zoom(Folds([Threshold()], [None]), np.zeros((90, 90, 3), np.uint8), PARAMS, CPU)
    assert asked == pytest.approx([1, 2**-0.5])
    assert found == pytest.approx(2**0.25)


def test_where_nothing_is_found_what_is_read_stays():
    empty = np.zeros((100, 100, 3), np.uint8)
    assert find_zoom(Folds([Threshold()], [reader_of(8)]), empty, PARAMS, CPU) == pytest.approx(4.0)


def test_the_median_network_decides_in_eighths_of_an_octave(monkeypatch):
    monkeypatch.setattr(zoom_module, "measure_diameter", lambda *_: 0.0)
    monkeypatch.setattr(zoom_module, "read_octaves", lambda _, reader, *__: reader)
    image = np.zeros((90, 90, 3), np.uint8)
    models = [Threshold()] * 3
    assert find_zoom(Folds(models, [-1.7, 0.26, 1.0]), image, PARAMS, CPU) == pytest.approx(2**0.25)


def test_without_a_wanted_size_images_are_seen_as_they_are():
    native = PARAMS.model_copy(update={"object_diameter_px": 0.0})
    assert find_zoom(Folds([Threshold()], [reader_of(1)]), draw_discs(9), native, CPU) == 1.0
