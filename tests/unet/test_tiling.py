"""Tiles along one axis: they cover it, their weights sum to 1, mirrors and zooms are what numpy and torch make."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.unet.blocks import LengthRule
from pipeline.unet.tiling import _interpolate, _mirror, plan_axis


def written_sum(axis, length_px):
    """Return what all tiles together write where every prediction is 1."""
    total = np.zeros(length_px)
    weights = axis.write[range(axis.write.n)].sum(dim=-1) if axis.read is not None else axis.write
    for first, weight in zip(axis.firsts, weights.numpy(), strict=True):
        total[first : first + axis.target_px] += weight
    return total


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 700),
    zoom=st.sampled_from([1.0, 0.25, 0.5, 0.7, 1.3, 2.0]),
    tile=st.integers(20, 300),
    overlap=st.integers(0, 9),
    power=st.integers(0, 5),
    margin=st.sampled_from([0, 3, 40]),
)
def test_every_pixel_is_written_with_weight_one(length, zoom, tile, overlap, power, margin):
    lengths = LengthRule(2**power, (2**power) // 2, margin)
    axis = plan_axis(length, zoom, tile, overlap, lengths)
    np.testing.assert_allclose(written_sum(axis, length), 1, atol=1e-5)
    assert axis.firsts == sorted(axis.firsts)
    assert axis.firsts[0] == 0
    assert axis.firsts[-1] + axis.target_px == length
    assert 0 <= axis.sources.min() <= axis.sources.max() < length
    fed = axis.sources.shape[1] if axis.read is None else axis.read.rows
    lengths.output_of(fed)  # raises where the network would not take it
    if axis.read is not None:
        np.testing.assert_allclose(axis.read[range(axis.read.n)].sum(dim=-1), 1, atol=1e-5)


def test_tiles_are_as_few_and_as_small_as_they_can_be():
    assert plan_axis(256, 1, 512, 64, LengthRule(32)).sources.shape == (1, 256)
    assert plan_axis(250, 1, 512, 64, LengthRule(32)).sources.shape == (1, 256)
    # 520 px need two tiles; 292 px each would do, and 320 is the next multiple of 32.
    axis = plan_axis(520, 1, 512, 64, LengthRule(32))
    assert axis.sources.shape == (2, 320)
    assert axis.firsts == [0, 200]


def test_the_blend_is_smooth():
    axis = plan_axis(900, 1, 512, 64, LengthRule(1))
    first, second = axis.write.numpy()
    assert axis.firsts == [0, 418]
    assert (first[:418] == 1).all()
    assert (second[64:] == 1).all()
    np.testing.assert_allclose(first[434:466], 1 - (first[434:466])[::-1], atol=1e-6)
    assert np.abs(np.diff(first)).max() < np.pi / 2 / 32  # the raised cosine's steepest step
    assert (first[-16:] == 0).all()  # where a tile has not seen what is beyond


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_mirror_is_numpy_s_symmetric_padding(length, before, after):
    expected = np.pad(np.arange(length), (before, after), mode="symmetric")
    assert _mirror(np.arange(-before, length + after), length).tolist() == expected.tolist()


@pytest.mark.parametrize(("size", "zoomed"), [(64, 32), (64, 20), (64, 100), (40, 120)])
def test_zoom_is_torch_s_antialiased_bilinear(size, zoomed):
    signal = torch.rand(1, 1, 1, size, dtype=torch.float64)
    theirs = F.interpolate(signal, (1, zoomed), mode="bilinear", antialias=True, align_corners=False)[0, 0, 0]
    taps, weights = _interpolate(np.arange(zoomed), size, zoomed)
    ours = (signal[0, 0, 0].numpy()[taps] * weights).sum(axis=1)
    inner = slice(3, -3)  # at the ends torch cuts the triangle off where it is mirrored here
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-12)


def test_tiles_of_a_zoomed_axis_sample_one_grid():
    """Where two tiles overlap, they are fed the same values."""
    signal = np.random.default_rng(0).random(500)
    axis = plan_axis(500, 0.61, 128, 20, LengthRule(8))
    fed = axis.read[range(axis.read.n)].numpy() @ signal[axis.sources][..., None]
    taps, weights = _interpolate(np.arange(305), 500, 305)
    whole = (signal[taps] * weights).sum(axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(whole, fed.shape[1])
    assert len(fed) == 3
    for tile in fed[..., 0]:
        assert np.abs(windows - tile).max(axis=1).min() < 1e-6


@pytest.mark.parametrize(("length", "zoom"), [(1, 2.0), (7, 4.0), (256, 0.5), (300, 1.3), (1000, 0.7)])
def test_a_matrix_in_bands_is_the_matrix(length, zoom):
    rows, columns = (plan_axis(px, zoom, 200, 64, LengthRule(32)) for px in (length, length + 13))
    tiles = [columns.write.n - 1, 0, columns.write.n - 1]
    for down, along in ((rows.read, columns.read), (rows.write, columns.write)):
        for tile in range(down.n):
            x = torch.rand(3, 2, down[tile].shape[1], along[0].shape[1])
            expected = down[tile] @ x @ along[tiles].unsqueeze(1).mT
            found = along.apply_to_columns(tiles, down.apply_to_rows(tile, x))
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
            bands = down.bands(tile, torch.device("cpu"))
            assert length < 300 or sum(band.weights.numel() for band in bands) < 0.5 * down[tile].numel()
