"""Decoding: it inverts the targets, and each parameter does what it says."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.ndimage import binary_fill_holes, gaussian_filter
from scipy.ndimage import label as label_components

from pipeline.errors import InputError
from pipeline.nuclei.decoding import (
    Decoding,
    average_zooms,
    decode_instances,
    decode_strips,
    drop_small,
    fill_holes,
)
from pipeline.nuclei.metric import score
from pipeline.nuclei.targets import encode_targets
from pipeline.params import TargetsParams

DECODING = Decoding(seed_threshold=0.5, boundary_weight=1.0, mask_threshold=0.4, min_area_px=5)


def encode(label_map):
    """The targets of a label map, as the network's probabilities: (H, W, 3) uint8."""
    params = TargetsParams(boundary="contact", boundary_px=2, distance_px=8)
    targets = encode_targets(torch.from_numpy(label_map.astype(np.int32))[None], params)[0]
    return np.ascontiguousarray((targets * 255).round().byte().permute(1, 2, 0).numpy())


def draw_discs(centres, radius, shape=(64, 96)):
    rows, columns = np.indices(shape)
    label_map = np.zeros(shape, np.int32)
    for label, (row, column) in enumerate(centres, start=1):
        label_map[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = label
    return label_map


def pile(foreground, boundary=0.0, distance=0.0):
    """Stack channels of one float image."""
    foreground = np.asarray(foreground, np.float32)
    return np.stack([foreground, *(np.broadcast_to(np.float32(c), foreground.shape) for c in (boundary, distance))], 2)


def test_touching_discs_come_back():
    centres = [(r, c) for r in (8, 22, 36, 50) for c in range(8, 96, 14)]
    label_map = draw_discs(centres, 7.5)
    found = decode_instances(encode(label_map), DECODING)
    assert found.dtype == np.int32
    assert len(np.unique(found)) == 1 + len(centres)
    assert score(label_map, found) > 0.95


@pytest.mark.parametrize("seed", range(4))
def test_touching_ellipses_of_many_sizes_come_back(seed):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((150, 170))
    label_map = np.zeros((150, 170), np.int32)
    for label in range(1, 60):
        row, column, a, b = rng.integers(0, 150), rng.integers(0, 170), rng.integers(5, 16), rng.integers(5, 16)
        disc = ((rows - row) / a) ** 2 + ((columns - column) / b) ** 2 <= 1
        if not label_map[disc].any():
            label_map[disc] = label
    assert score(label_map, decode_instances(encode(label_map), DECODING)) > 0.97


def test_bytes_and_floats_decode_alike():
    probabilities = encode(draw_discs([(20, 20), (20, 33)], 7))
    expected = decode_instances(probabilities, DECODING)
    assert expected.max() == 2
    for floats in (np.float32, np.float64):
        np.testing.assert_array_equal(decode_instances(probabilities.astype(floats) / 255, DECODING), expected)


def test_without_the_boundary_touching_discs_merge():
    probabilities = encode(draw_discs([(20, 20), (20, 33)], 7))
    assert decode_instances(probabilities, Decoding(0.5, 0.0, 0.4, 5)).max() == 1


def test_a_nucleus_whose_seed_the_boundary_took_is_kept_and_a_faint_one_is_not():
    foreground = np.zeros((12, 30))
    foreground[3:9, 2:8] = 0.9  # all of it boundary
    foreground[3:9, 12:18] = 0.45  # in the mask, below the seeds
    foreground[3:9, 22:28] = 0.9
    boundary = np.zeros((12, 30))
    boundary[:, :10] = 1
    found = decode_instances(pile(foreground, boundary), DECODING)
    assert found.max() == 2
    np.testing.assert_array_equal(found > 0, foreground > 0.5)


def test_the_mask_threshold_bounds_the_nuclei():
    foreground = np.array([[0, 0.2, 0.35, 0.6, 0.9, 0.9, 0.6, 0.35, 0.2, 0]] * 5)
    for threshold, width in ((0.3, 6), (0.4, 4), (0.7, 2)):
        assert (decode_instances(pile(foreground), Decoding(0.5, 1.0, threshold, 1)) > 0).sum() == 5 * width


def test_a_seed_threshold_below_the_mask_threshold_splits_nothing_into_one_id():
    foreground = np.array([[0.9, 0.9, 0.5, 0.9, 0.9]] * 3)
    found = decode_instances(pile(foreground), Decoding(0.4, 1.0, 0.6, 1))
    assert found.tolist() == [[1, 1, 0, 2, 2]] * 3


def test_small_nuclei_are_dropped_and_ids_have_no_gaps():
    label_map = np.array([[1, 1, 0, 2, 0, 5, 5, 5]], np.int32)
    assert drop_small(label_map, 2).tolist() == [[1, 1, 0, 0, 0, 2, 2, 2]]
    assert drop_small(label_map, 4).max() == 0


def test_holes_go_to_the_one_nucleus_around_them():
    label_map = np.zeros((9, 16), np.int32)
    label_map[1:8, 1:8] = 3
    label_map[3:5, 3:6] = 0  # a hole
    label_map[0:5, 9:14] = 4
    label_map[0:2, 11] = 0  # reaches the edge
    expected = label_map.copy()
    expected[3:5, 3:6] = 3
    np.testing.assert_array_equal(fill_holes(label_map), expected)


def test_a_gap_between_nuclei_is_no_hole():
    label_map = np.ones((7, 8), np.int32)
    label_map[:, 4:] = 2
    label_map[2:5, 3:6] = 0
    np.testing.assert_array_equal(fill_holes(label_map), label_map)


def test_nothing_in_nothing_out():
    assert decode_instances(np.zeros((5, 7, 3), np.uint8), DECODING).tolist() == [[0] * 7] * 5
    assert decode_instances(np.full((1, 1, 3), 255, np.uint8), Decoding(0.5, 0.0, 0.4, 1)).tolist() == [[1]]


@given(
    npst.arrays(np.uint8, (11, 9, 3)),
    st.builds(Decoding, *[st.sampled_from([0.2, 0.5, 0.8])] * 3, st.integers(1, 6)),
)
@settings(max_examples=60, deadline=None)
def test_on_noise_ids_are_dense_and_nuclei_whole_and_large_enough(probabilities, decoding):
    found = decode_instances(probabilities, decoding)
    areas = np.bincount(found.ravel())[1:]
    assert (areas >= decoding.min_area_px).all()
    assert (areas > 0).all()
    assert all(label_components(found == i, np.ones((3, 3)))[1] == 1 for i in range(1, found.max() + 1))
    mask = probabilities[..., 0] > decoding.mask_threshold * 255
    for i in range(1, found.max() + 1):
        # What a nucleus has outside of the mask is in its holes.
        assert not ((found == i) & ~binary_fill_holes((found == i) & mask)).any()


def same_nuclei(first, second):
    """Whether two label maps are the same but for the ids."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    return all(len(np.unique(ids)) == len(ids) for ids in pairs) and (pairs[:, pairs[0] == 0] == 0).all()


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    blur=st.sampled_from([0.7, 1.5, 4.0]),
    decoding=st.builds(
        Decoding, st.floats(0.2, 0.8), st.sampled_from([0.0, 1.0]), st.floats(0.2, 0.8), st.sampled_from([0, 6])
    ),
    strip_px=st.integers(1, 900),
)
def test_strips_leave_no_trace(seed, blur, decoding, strip_px):
    noise = np.random.default_rng(seed).normal(size=(90, 40, 3))
    smooth = np.stack([gaussian_filter(channel, blur) for channel in np.moveaxis(noise, 2, 0)], axis=2)
    probabilities = ((smooth / smooth.std() * 0.25 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    whole = decode_instances(probabilities, decoding)
    in_strips = decode_instances(probabilities, decoding, strip_px)
    assert same_nuclei(whole, in_strips)
    assert in_strips.max() == whole.max()


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    blur=st.sampled_from([0.7, 1.5, 4.0]),
    ends=st.lists(st.integers(0, 90), max_size=12),
    strip_px=st.integers(1, 4000),
)
def test_it_does_not_matter_where_given_strips_end(seed, blur, ends, strip_px):
    noise = np.random.default_rng(seed).normal(size=(90, 40, 3))
    smooth = np.stack([gaussian_filter(channel, blur) for channel in np.moveaxis(noise, 2, 0)], axis=2)
    probabilities = ((smooth / smooth.std() * 0.25 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    strips = np.split(probabilities, sorted(ends))
    found = decode_strips(iter(strips), (90, 40), DECODING, strip_px)
    np.testing.assert_array_equal(found, decode_instances(probabilities, DECODING, strip_px))
    assert same_nuclei(decode_instances(probabilities, DECODING), found)


def test_strips_are_read_as_they_are_needed_and_let_go():
    """Of an image of many rows only a few strips are held at a time, whatever its height."""
    made = []

    def strips():
        for number in range(100):
            strip = np.zeros((10, 30, 3), np.uint8)
            strip[2:8, 4:12] = (255, 0, 255)
            assert sum(each() is not None for each in made) <= 6, number
            made.append(weakref.ref(strip))
            yield strip
            del strip

    assert decode_strips(strips(), (1000, 30), DECODING, 900).max() == 100


@pytest.mark.parametrize("strips", [[np.zeros((5, 9, 3), np.uint8)], [np.zeros((10, 8, 3), np.uint8)], []])
def test_strips_that_are_not_the_image_are_refused(strips):
    with pytest.raises(InputError, match=r"too early; give \(rows, 9, 3\)"):
        decode_strips(strips, (10, 9), DECODING)


def test_strips_know_rings_and_what_lies_in_them():
    """Of three rings, one holds a faint speck, which it swallows, one a nucleus, one a ring, and so on."""
    foreground = np.zeros((70, 90))
    for column, insides in ((15, [(0.45, 3)]), (45, [(0.9, 3)]), (75, [(0.9, 8), (0.0, 5), (0.45, 2)])):
        for value, radius in [(0.9, 14), (0.0, 11), *insides]:
            foreground[draw_discs([(20, column)], radius, foreground.shape) > 0] = value
    foreground[66:] = 0.9  # and one that lies at the end
    probabilities = (pile(foreground) * 255).astype(np.uint8)
    whole = decode_instances(probabilities, DECODING)
    assert whole.max() == 6
    assert whole[20, 15] > 0
    for strip_px in (90, 450, 1800, 3600):
        assert same_nuclei(whole, decode_instances(probabilities, DECODING, strip_px))


@pytest.mark.parametrize("array", [np.zeros((4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8), np.zeros((4, 5, 3), int)])
def test_other_arrays_are_refused(array):
    with pytest.raises(InputError, match="give \\(H, W, 3\\)"):
        decode_instances(array, DECODING)


def test_zooms_are_averaged_in_strips_as_at_once(monkeypatch):
    zooms = np.random.default_rng(0).integers(0, 256, (3, 50, 20, 3), dtype=np.uint8)
    expected = zooms.astype(float).mean(axis=0).round()
    np.testing.assert_array_equal(average_zooms(zooms), expected)
    monkeypatch.setattr("pipeline.nuclei.decoding.STRIP_PX", 60)
    np.testing.assert_array_equal(average_zooms(zooms), expected)
    np.testing.assert_allclose(average_zooms(zooms / 255), zooms.mean(axis=0) / 255, rtol=1e-5)
    np.testing.assert_array_equal(average_zooms(zooms[:1]), zooms[0])


@pytest.mark.parametrize("shape", [(5, 7, 3), (0, 5, 7, 3)])
def test_probabilities_without_zooms_are_refused(shape):
    with pytest.raises(InputError, match="at least one zoom"):
        average_zooms(np.zeros(shape, np.uint8))
