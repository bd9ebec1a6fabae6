"""Candidates: every nucleus that some zoom or decoding sees, once, and what is measured of it, by hand."""

import numpy as np
import pytest
from skimage.measure import regionprops

from pipeline.errors import InputError
from pipeline.nuclei.candidates import FEATURES, find_candidates
from pipeline.nuclei.decoding import Decoding

LOW, HIGH = (Decoding(seed_threshold=0.5, boundary_weight=1.0, mask_threshold=t, min_area_px=1) for t in (0.3, 0.6))


def pile(foreground, boundary=0.0, distance=0.0):
    foreground = np.asarray(foreground, np.float32)
    return np.stack([foreground, *(np.broadcast_to(np.float32(c), foreground.shape) for c in (boundary, distance))], 2)


def feature(candidates, name):
    return candidates.features[:, FEATURES.index(name)]


def disc(shape, centre, radius):
    rows, columns = np.indices(shape)
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def test_a_square_is_measured_as_by_hand():
    foreground = np.zeros((9, 10), np.float32)
    foreground[2:6, 3:7] = 0.8
    candidates = find_candidates(pile(foreground, 0.25, 0.5)[None], [1.0], [LOW], expected_px=8.0)
    assert len(candidates) == 1
    rows, columns = np.divmod(candidates.pixels_of(0), 10)
    assert (rows.min(), rows.max(), columns.min(), columns.max(), len(rows)) == (2, 5, 3, 6, 16)
    diameter = np.log2(2 * np.sqrt(16 / np.pi))
    expected = {
        "log2_scale": 0, "seed_threshold": 0.5, "mask_threshold": 0.3,
        "image_against_expected": diameter - 3, "image_doubt": 0.8 * 0.2,
        "against_expected": diameter - 3, "against_median": 0, "foreground": 0.8, "foreground_spread": 0,
        "boundary": 0.25, "distance": 0.5, "deepest": 0.5, "own_foreground": 0.8, "rim_foreground": 0.8,
        "rim_boundary": 0.25, "rim_share": 12**2 / 16, "outside_foreground": 0, "neighbour_share": 0, "roundness": 1,
        # A square of side 4 has variance 16/12 each way: its ellipse has area 4 pi 16/12.
        "ellipse_fill": 16 / (4 * np.pi * 16 / 12),
        "agreement": 1, "least_agreement": 1, "agreement_finer": 1, "agreement_coarser": 1,
    }  # fmt: skip
    assert tuple(expected) == FEATURES
    np.testing.assert_allclose(candidates.features[0], list(expected.values()), atol=2e-4)


def test_what_is_found_twice_is_one_candidate():
    foreground = np.where(disc((30, 30), (14, 14), 6), 0.9, 0.0)
    same = find_candidates(np.stack([pile(foreground)] * 3), [0.5, 1.0, 2.0], [LOW, HIGH], 12.0)
    assert len(same) == 1
    assert feature(same, "agreement")[0] == 1
    shifted = np.roll(foreground, 1, axis=1)
    assert len(find_candidates(np.stack([pile(foreground), pile(shifted)]), [0.5, 1.0], [LOW], 12.0)) == 3


def test_what_is_new_beside_what_was_found_is_measured_as_alone():
    """The left square is found by both decodings; the right one, which touches it, grows between them."""
    foreground = np.zeros((9, 14), np.float32)
    foreground[2:6, 2:6], foreground[2:6, 7:10], foreground[2:6, 10] = 0.9, 0.9, 0.45
    boundary = np.zeros_like(foreground)
    foreground[2:6, 6], boundary[2:6, 6] = 0.9, 1.0
    both = find_candidates(pile(foreground, boundary)[None], [1.0], [HIGH, LOW], 4.0)
    alone = find_candidates(pile(foreground, boundary)[None], [1.0], [LOW], 4.0)
    assert len(alone) == 2
    assert len(both) == 3
    new = 2
    same = [index for index in range(2) if alone.pixels_of(index).tolist() == both.pixels_of(new).tolist()]
    skip = FEATURES.index("agreement")
    assert both.features[new, :skip].tolist() == alone.features[same[0], :skip].tolist()
    assert feature(both, "neighbour_share")[new] > 0


def test_agreement_is_the_best_iou_with_the_other_maps():
    """A halo of 0.4 belongs to a nucleus at the low threshold only: two candidates, whose IoU is that of the areas."""
    core, halo = disc((40, 40), (20, 20), 6), disc((40, 40), (20, 20), 9)
    foreground = np.where(core, 0.9, np.where(halo, 0.4, 0.0))
    candidates = find_candidates(pile(foreground)[None], [1.0], [LOW, HIGH], 12.0)
    assert len(candidates) == 2
    np.testing.assert_allclose(feature(candidates, "agreement"), core.sum() / halo.sum(), rtol=1e-6)
    # The outside of the small one is the halo, that of the large one nothing.
    outside = dict(zip(feature(candidates, "mask_threshold"), feature(candidates, "outside_foreground"), strict=True))
    np.testing.assert_allclose([outside[np.float32(0.3)], outside[np.float32(0.6)]], [0, 0.4], atol=1e-6)


def test_zooms_agree_with_finer_and_coarser_ones():
    """The coarse zoom sees one nucleus where the fine one sees nothing: the fine map denies the coarse candidate."""
    foreground = np.where(disc((30, 30), (14, 14), 6), 0.9, 0.0)
    candidates = find_candidates(np.stack([pile(foreground), pile(0 * foreground)]), [0.5, 1.0], [LOW], 12.0)
    (own,) = np.flatnonzero(feature(candidates, "log2_scale") == -1)
    assert feature(candidates, "agreement_finer")[own] == 0
    assert feature(candidates, "own_foreground")[own] == pytest.approx(0.9)
    assert feature(candidates, "foreground")[own] == pytest.approx(0.45)


def test_neighbours_and_the_image_edge():
    """Two halves that touch along a border, both at the image's edge, which counts as no outside."""
    foreground = np.full((8, 12), 0.9, np.float32)
    boundary = np.zeros_like(foreground)
    boundary[:, 5:7] = 1
    candidates = find_candidates(pile(foreground, boundary)[None], [1.0], [LOW], 8.0)
    assert len(candidates) == 2
    np.testing.assert_array_equal(feature(candidates, "neighbour_share"), 1)
    np.testing.assert_allclose(feature(candidates, "rim_share"), 8**2 / 48)


@pytest.mark.parametrize("seed", range(3))
def test_shapes_and_sizes_are_scikit_images(seed):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((80, 90))
    foreground = np.zeros((80, 90), np.float32)
    for row in range(14, 70, 26):
        for column in range(14, 80, 26):
            a, b = rng.uniform(4, 11, 2)
            foreground[((rows - row) / a) ** 2 + ((columns - column) / b) ** 2 <= 1] = 0.9
    candidates = find_candidates(pile(foreground)[None], [1.0], [LOW], 12.0)
    assert len(candidates) == 9
    for index in range(len(candidates)):
        label_map = np.zeros(80 * 90, int)
        label_map[candidates.pixels_of(index)] = 1
        (oracle,) = regionprops(label_map.reshape(80, 90))
        # scikit-image counts a pixel as a point, not as a square.
        wide, narrow = np.array(oracle.inertia_tensor_eigvals) + 1 / 12
        ratio, fill = narrow / wide, oracle.area / (4 * np.pi * np.sqrt(narrow * wide))
        assert feature(candidates, "roundness")[index] == pytest.approx(ratio, rel=1e-3)
        assert feature(candidates, "ellipse_fill")[index] == pytest.approx(fill, rel=1e-3)
        relative = 2 ** feature(candidates, "against_expected")[index]
        assert 12 * relative == pytest.approx(oracle.equivalent_diameter_area, rel=1e-5)


def test_bytes_are_floats_times_255():
    rng = np.random.default_rng(0)
    bytes_ = rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    from_bytes = find_candidates(bytes_, [1.0, 2.0], [LOW, HIGH], 5.0)
    from_floats = find_candidates(bytes_ / np.float32(255), [1.0, 2.0], [LOW, HIGH], 5.0)
    np.testing.assert_array_equal(from_bytes.runs, from_floats.runs)
    np.testing.assert_allclose(from_bytes.features, from_floats.features, rtol=1e-5, atol=1e-5)


def test_an_empty_image_has_no_candidates():
    candidates = find_candidates(np.zeros((2, 5, 7, 3), np.uint8), [1.0, 2.0], [LOW], 10.0)
    assert len(candidates) == 0
    assert candidates.features.shape == (0, len(FEATURES))


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 5, 7, 3)])
def test_a_zoom_too_few_is_refused(shape):
    with pytest.raises(InputError, match="2 zooms"):
        find_candidates(np.zeros(shape, np.uint8), [1.0, 2.0], [LOW], 10.0)
