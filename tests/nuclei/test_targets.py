"""Targets: hand-computed maps, scipy's exact distances as the oracle, and what the device asks for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.ndimage import distance_transform_edt
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.nuclei.targets import encode_targets, paper_weight_map
from pipeline.params import TargetsParams

PARAMS = TargetsParams(boundary="contact", boundary_px=2, distance_px=4)
LABEL_MAPS = npst.arrays(np.int32, (2, 9, 11), elements=st.sampled_from([0, 0, 1, 1, 2, 700]))


def encode(label_map, params=PARAMS):
    """Encode one label map; returns foreground, boundary, distance as numpy."""
    return encode_targets(torch.as_tensor(np.asarray(label_map, np.float32))[None], params)[0].numpy()


def draw_label_map(seed, shape=(60, 70), n=12):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    label_map = np.zeros(shape, np.int32)
    for label in range(1, n + 1):
        row, column, radius = rng.integers(0, shape[0]), rng.integers(0, shape[1]), rng.integers(2, 12)
        label_map[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = label * 50
    return label_map


def distance_outside(label_map, label):
    """Exact distance to the nearest pixel inside the map that is not `label`; the edge is no border."""
    outside = label_map != label
    return distance_transform_edt(~outside) if outside.any() else np.full(label_map.shape, np.inf)


def test_one_row_by_hand():
    foreground, boundary, distance = encode([[0, 0, 0, 0, 5, 5, 5, 6, 6, 6, 6, 6]])
    assert foreground[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert boundary[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert (distance[0] * 4).tolist() == [0, 0, 0, 0, 1, 2, 1, 1, 2, 3, 4, 4]


def test_the_gap_between_two_nuclei_is_boundary():
    _, boundary, _ = encode([[1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0, 0, 3]])
    assert boundary[0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_boundary_reaches_over_corners():
    label_map = np.zeros((5, 5))
    label_map[1, 1], label_map[3, 3] = 1, 2
    boundary = encode(label_map)[1]
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = 1  # the pixels within 2 of both
    np.testing.assert_array_equal(boundary, expected)


def test_the_edge_of_the_map_is_no_border():
    assert (encode(np.ones((5, 6)))[2] == 1).all()


@pytest.mark.parametrize("radius_px", [1, 4, 8, 12, 20])
@pytest.mark.parametrize("shape", [(60, 70), (50, 6), (3, 90)])  # the last two are narrower than what a look reaches
def test_distance_is_exact(shape, radius_px):
    label_map = draw_label_map(radius_px, shape)
    expected = np.zeros(label_map.shape)
    for label in np.unique(label_map[label_map > 0]):
        expected = np.where(label_map == label, distance_outside(label_map, label), expected)
    found = encode(label_map, TargetsParams(boundary="contact", boundary_px=2, distance_px=radius_px))[2]
    np.testing.assert_allclose(found, np.minimum(expected / radius_px, 1), atol=1e-6)


@given(LABEL_MAPS, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_boundary_equals_its_definition(label_maps, radius):
    params = TargetsParams(boundary="contact", boundary_px=radius, distance_px=4)
    boundary = encode_targets(torch.from_numpy(label_maps), params)[:, 1].numpy()
    for label_map, found in zip(label_maps, boundary, strict=True):
        for row, column in np.ndindex(label_map.shape):
            window = label_map[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
            assert found[row, column] == (len(np.unique(window[window > 0])) > 1)


@given(LABEL_MAPS)
@settings(max_examples=25, deadline=None)
def test_turning_the_map_turns_the_targets(label_maps):
    x = torch.from_numpy(label_maps)
    for change in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.transpose(-1, -2)):
        torch.testing.assert_close(encode_targets(change(x), PARAMS), change(encode_targets(x, PARAMS)))


def test_channels_are_float32_in_the_unit_interval_and_ids_do_not_matter():
    label_map = torch.from_numpy(draw_label_map(1))[None]
    targets = encode_targets(label_map, PARAMS)
    assert targets.dtype == torch.float32
    assert targets.shape == (1, 3, 60, 70)
    assert 0 <= targets.min() < targets.max() <= 1
    for other in (label_map.float(), label_map.long(), label_map * 1000, label_map.to(torch.int16)):
        assert torch.equal(encode_targets(other, PARAMS), targets)


def test_empty_maps_and_maps_smaller_than_the_radius():
    assert not encode(np.zeros((8, 9))).any()
    assert encode([[3.0]]).tolist() == [[[1]], [[0]], [[1]]]


def exact_weights(label_map, w0, sigma):
    labels = np.unique(label_map[label_map > 0])
    distances = np.sort([distance_transform_edt(label_map != label) for label in labels], axis=0)
    return w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize(("seed", "sigma"), [(0, 5.0), (1, 5.0), (2, 2.0), (3, 3.3)])
def test_weight_map_equals_the_exact_one_but_for_the_tail(seed, sigma):
    label_map = draw_label_map(seed)
    found = paper_weight_map(torch.from_numpy(label_map)[None].float(), 10.0, sigma)[0].numpy()
    expected = exact_weights(label_map, 10.0, sigma)
    assert np.abs(found - expected).max() <= 0.012 * 10
    near = expected > 0.012 * 10
    np.testing.assert_allclose(found[near], expected[near], rtol=1e-4)


def test_weight_map_by_hand():
    label_map = torch.tensor([[[1, 0, 0, 2, 2, 9]]])
    gap = torch.tensor([3.0, 3, 3, 2, 1, 1])  # on a nucleus d1 is 0
    gap[3] = 2.0  # the 2 at the left is 2 from 9, and 3 from 1
    torch.testing.assert_close(paper_weight_map(label_map, 10.0, 5.0)[0, 0], 10 * torch.exp(-(gap**2) / 50))


def test_a_nucleus_alone_has_no_weight():
    label_map = torch.zeros(1, 20, 20)
    label_map[:, 5:9, 5:9] = 300
    assert not paper_weight_map(label_map, 10.0, 5.0).any()


def test_both_run_on_a_device_with_fixed_shapes():
    with FakeTensorMode():
        label_map = torch.empty(2, 32, 48, device="cuda")
        targets, weights = encode_targets(label_map, PARAMS), paper_weight_map(label_map, 10.0, 5.0)
    assert (targets.device.type, targets.shape, targets.dtype) == ("cuda", (2, 3, 32, 48), torch.float32)
    assert (weights.device.type, weights.shape, weights.dtype) == ("cuda", (2, 32, 48), torch.float32)


def test_membrane_is_all_that_is_inside_of_nothing():
    params = PARAMS.model_copy(update={"boundary": "membrane"})
    foreground, boundary, _ = encode([[1, 1, 0, 0, 0, 0, 0, 0, 2, 2, 3, 3]], params)
    assert boundary[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert (foreground + boundary == 1).all()
