"""Mosaic tiles and near-duplicates are found from pixels; unrelated, empty and odd images are left alone."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pipeline.folds import seams
from pipeline.folds.groups import _SAME_CORRELATION, find_duplicates, find_seams, group_images, sketch_image


def make_field(seed, height=256, width=256, channels=3, nuclei=60):
    """Return a noisy field of bright discs on a dark ground, uint8 (H, W, C)."""
    rng = np.random.default_rng(seed)
    field = np.full((height, width, channels), 12.0)
    rows, cols = np.mgrid[:height, :width]
    for _ in range(nuclei):
        row, col, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 12)
        disc = (rows - row) ** 2 + (cols - col) ** 2 < radius**2
        field[disc] = rng.uniform(60, 200, channels)
    field = gaussian_filter(field, (1, 1, 0)) + rng.normal(0, 2, (height, width, 1))
    return field.clip(0, 255).astype(np.uint8)


def cut(field, name, rows=2, cols=2):
    """Cut a field into rows x cols tiles, with names that do not sort by place."""
    strips = np.split(field, rows, axis=0)
    tiles = [tile for strip in strips for tile in np.split(strip, cols, axis=1)]
    return {f"{(7 * i) % 13:x}{name}": tile for i, tile in enumerate(tiles)}


def partition(groups: pd.Series) -> set[frozenset]:
    return {frozenset(members) for members in groups.groupby(groups).groups.values()}


@pytest.fixture(scope="module")
def scene():
    """Return images and the groups that they are made of: mosaics grey and coloured, a larger one, and singles."""
    fields = {
        "grey": cut(make_field(1, channels=1), "grey"),
        "red": cut(make_field(2), "red"),
        "wide": cut(make_field(3, 256, 320), "wide"),
        "large": cut(make_field(4, 384, 512, nuclei=160), "large", 3, 4),
    }
    singles = {f"single{i}": make_field(10 + i, 128, 128, nuclei=15) for i in range(12)}
    images = {image_id: image for tiles in fields.values() for image_id, image in tiles.items()} | singles
    return images, {frozenset(tiles) for tiles in fields.values()} | {frozenset([name]) for name in singles}


def test_tiles_are_grouped_and_others_are_not(scene):
    images, truth = scene
    assert partition(group_images(images.items())) == truth


def test_group_is_the_smallest_member_and_index_is_sorted(scene):
    groups = group_images(scene[0].items())
    assert groups.name == "group"
    assert list(groups.index) == sorted(scene[0])
    for name, members in groups.groupby(groups).groups.items():
        assert name == min(members)


@settings(max_examples=5, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_neither_names_nor_order_matter(scene, order):
    images, truth = scene
    names = list(images)
    fresh = [f"{i:03d}" for i in range(len(names))]
    order.shuffle(fresh)
    renamed = dict(zip(names, fresh, strict=True))
    groups = group_images((renamed[name], images[name]) for name in order.sample(names, len(names)))
    assert partition(groups) == {frozenset(renamed[name] for name in group) for group in truth}


def test_copies_join_and_bring_their_mosaics_along():
    tiles = cut(make_field(2), "a")
    noise = np.random.default_rng(0)
    first = next(iter(tiles))
    images = tiles | {"exact": tiles[first].copy(), "other": make_field(30, 128, 128, nuclei=15)}
    images["noisy"] = (tiles[first].astype(int) + noise.integers(-2, 3, (128, 128, 3))).clip(0, 255).astype(np.uint8)
    images["brighter"] = (tiles[first].astype(float) * 1.1 + 5).clip(0, 255).astype(np.uint8)
    assert partition(group_images(images.items())) == {frozenset(images) - {"other"}, frozenset({"other"})}


def test_a_ring_holds_across_a_seam_over_dark_ground():
    # Nuclei only near the middle of the left half's and the right half's own seams: nothing crosses the top seam.
    field = make_field(5, nuclei=0)
    textured = make_field(6, nuclei=90)
    field[100:156], field[150:, 100:156] = textured[100:156], textured[150:, 100:156]
    tiles = cut(field, "a")
    assert len(partition(group_images(tiles.items()))) == 1


def test_noise_alone_ties_nothing():
    rng = np.random.default_rng(3)
    images = {f"{i:02d}": rng.poisson(4, (96, 96, 1)).repeat(3, axis=2).astype(np.uint8) for i in range(60)}
    assert group_images(images.items()).nunique() == 60


def test_lighting_alone_ties_nothing():
    """Fields lit from one side, each with noise of its own: borders share a slope, nothing else."""
    rng = np.random.default_rng(4)
    slope = np.linspace(20, 60, 96)[:, None, None] + np.zeros((1, 96, 1))
    images = {f"{i:02d}": rng.poisson(slope).astype(np.uint8) for i in range(30)}
    assert len(find_seams([sketch_image(image) for image in images.values()])) == 0


def test_borders_of_different_fields_are_no_seam():
    """The null: left halves mirrored top to bottom share statistics with true neighbours, but continue none."""
    images = {}
    for seed in range(20):
        left, right = np.split(make_field(100 + seed, 128, 256, nuclei=30), 2, axis=1)
        images |= {f"{seed}left": left, f"{seed}right": right[::-1]}
    assert group_images(images.items()).nunique() == len(images)


def test_blank_images_join_only_their_equals():
    images = {"a": np.zeros((64, 64, 3), np.uint8), "b": np.zeros((64, 64, 3), np.uint8)}
    images |= {"c": np.full((64, 64, 3), 9, np.uint8), "d": np.zeros((64, 80, 3), np.uint8)}
    assert partition(group_images(images.items())) == {frozenset("ab"), frozenset("c"), frozenset("d")}


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 3), (40, 1), (2, 2, 1), (33, 47, 4), (64, 64)])
def test_odd_shapes_pass(shape):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, shape, np.uint8) for name in "abc"}
    assert set(group_images(images.items()).index) == set("abc")


def test_no_image_gives_no_group():
    assert group_images(()).empty


def test_images_are_read_once_and_not_kept():
    alive = []

    def stream():
        for name, image in cut(make_field(2), "a").items():
            array = image.copy()
            alive.append(array)
            yield name, array

    sketches = [sketch_image(array) for _, array in stream()]
    for sketch in sketches:
        assert not any(np.shares_memory(border, image) for border in sketch.borders.values() for image in alive)


def test_a_copy_of_another_size_that_sorts_first_takes_no_tile_from_its_field():
    tiles = cut(make_field(6), "field")
    name = sorted(tiles)[0]
    twin = cv2.resize(tiles[name], (100, 100), interpolation=cv2.INTER_AREA)
    assert partition(group_images({**tiles, "!twin": twin}.items())) == {frozenset([*tiles, "!twin"])}


def test_duplicates_agree_with_comparing_every_pair():
    rng = np.random.default_rng(1)
    base = [make_field(seed, 64, 64, nuclei=8) for seed in range(12)]
    images = base + [
        (image + rng.normal(0, std, image.shape)).clip(0, 255).astype(np.uint8)
        for image, std in zip(base, np.linspace(0, 120, 12), strict=True)
    ]
    sketches = [sketch_image(image) for image in images]
    thumbnails = np.stack([sketch.thumbnail for sketch in sketches])
    near = np.argwhere(np.triu(thumbnails @ thumbnails.T >= _SAME_CORRELATION, 1))
    found = {tuple(sorted(pair)) for pair in find_duplicates(sketches).tolist() if pair[0] != pair[1]}
    assert found == {tuple(pair) for pair in near.tolist()}
    assert 0 < len(found) < 12


@pytest.mark.parametrize("smoothing", [0.0, 2.0, 6.0])
def test_evidence_of_unrelated_borders_is_standard_normal(smoothing):
    profiles = np.random.default_rng(5).normal(size=(2, 2000, 256))
    profiles = gaussian_filter(profiles, (0, 0, smoothing)) if smoothing else profiles
    ends, starts = (seams.normalise(part) for part in profiles)
    evidence = seams._evidence(ends, starts)
    assert evidence.mean() == pytest.approx(0, abs=0.1)
    assert evidence.std() == pytest.approx(1, abs=0.15)


def test_the_step_across_a_seam_by_hand():
    # Steps of 1 beside the seam on both sides, of 3 across it, alike at every pixel: 3 to 1 at every scale.
    ends, starts = np.zeros((1, 2, 64, 1)), np.zeros((1, 2, 64, 1))
    ends[:, 1], starts[:, 0], starts[:, 1] = -1, 3, 4
    assert seams._seam_ratio(ends, starts)[0] == pytest.approx(3, rel=1e-3)


def test_more_decoys_ask_for_more_evidence():
    needed = [seams.evidence_needed(chance) for chance in (0, 1, 10, 1000, 10**6)]
    assert needed == sorted(needed)
    # 4 sf(e)^2 of 10 rings are to be 0.003: sf(e) is sqrt(0.003 / 40) = 0.00866, and e 2.379 by the table.
    assert needed[2] == pytest.approx(2.379, abs=0.001)


def test_a_side_has_one_partner_and_the_best_evidence_wins():
    def columns(*rows):
        first, second, ratio, evidence = (np.array(column) for column in zip(*rows, strict=True))
        return seams.Seams(first, second, ratio, evidence)

    # The ring 0 1 over 2 3 is stronger than 0 4 over 2 3, and 5's strong lone seam wants the side that 0 has taken.
    across = columns((0, 1, 1.0, 4.0), (0, 4, 1.0, 3.0), (2, 3, 1.0, 4.0), (5, 1, 1.0, 8.0))
    down = columns((0, 2, 1.0, 4.0), (1, 3, 1.0, 4.0), (4, 3, 1.0, 4.0))
    pairs = seams.choose_seams(across, down, needed=3.0)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert sorted(map(tuple, seams.choose_seams(across, down, needed=6.0).tolist())) == [(5, 1)]
