"""A prepared split by its images: what it gives, in which order, and what it says where something is missing."""

import pickle

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.images.splits import PreparedSplit
from pipeline.images.store import PackWriter

SHAPES = {"b": (6, 8), "a": (5, 9), "NA": (7, 7)}


def draw(image_id):
    """Return an image that says its number, and a label map with one nucleus of 4 px but in NA."""
    shape = SHAPES[image_id]
    label_map = np.zeros(shape, np.uint16)
    label_map[1:3, 1:3] = image_id != "NA"
    return np.full((*shape, 3), list(SHAPES).index(image_id), np.uint8), label_map


@pytest.fixture
def split(make_split):
    return make_split({image_id: draw(image_id) for image_id in SHAPES})


def test_images_come_sorted_by_id_whatever_their_order_in_the_pack(split):
    assert len(split) == 3
    assert split.image_ids == split.table["image_id"].tolist() == ["NA", "a", "b"]
    assert [image_id for image_id, _ in split.images()] == [image_id for image_id, _ in split.label_maps()]
    for image_id, image in split.images():
        assert np.array_equal(image, draw(image_id)[0])
    for image_id, label_map in split.label_maps():
        assert np.array_equal(label_map, draw(image_id)[1])


def test_shapes_and_diameters(split):
    assert split.shapes() == SHAPES
    assert split.shape_of("a") == (5, 9)
    assert split.diameters_px == pytest.approx([0, *[2 * np.sqrt(4 / np.pi)] * 2])


def test_arrays_cannot_be_written_to(split):
    with pytest.raises(ValueError, match="read-only"):
        split.image("a")[0] = 1


def test_chosen_images_keep_the_order_of_the_table(split):
    chosen = split.select(["b", "NA", "b"])
    assert chosen.image_ids == ["NA", "b"]
    assert chosen.table.index.tolist() == [0, 1]
    assert chosen.shapes() == {"NA": (7, 7), "b": (6, 8)}
    assert len(chosen.diameters_px) == len(list(chosen.images())) == 2
    assert len(split.select(iter([]))) == 0
    assert len(split) == 3


def test_a_split_travels_without_its_images(split):
    payload = pickle.dumps(split.select(["a", "b"]))
    assert len(payload) < 10_000
    travelled = pickle.loads(payload)
    assert travelled.image_ids == ["a", "b"]
    assert np.array_equal(travelled.image("b"), draw("b")[0])


def test_a_large_image_does_not_travel(make_split):
    split = make_split({"a": (np.zeros((1000, 1000, 3), np.uint8), np.zeros((1000, 1000), np.uint16))})
    split.image("a")
    assert len(pickle.dumps(split)) < 10_000


def test_what_is_not_there_is_named_with_the_cure(split):
    for ask in (lambda: split.select(["a", "z"]), lambda: split.shape_of("z")):
        with pytest.raises(InputError, match=r"table\.csv: no image 'z' in it; run the stage `prepare` again"):
            ask()
    with pytest.raises(
        InputError, match=r"images\.npz: no image of the image 'z' in it; run the stage `prepare` again"
    ):
        split.image("z")


def test_a_test_set_has_no_label_maps(make_split):
    split = make_split({"a": (draw("a")[0], None)})
    assert split.diameters_px.tolist() == [0]
    with pytest.raises(InputError, match=r"images\.npz: no label_map of the image 'a' in it"):
        split.label_map("a")


def test_a_window_is_what_slicing_gives(split):
    for window in (np.s_[1:3, 2:7], np.s_[0:1, 0:2], np.s_[4:9, 0:100]):
        assert split.image("a", window).tolist() == split.image("a")[window].tolist()
        assert split.label_map("a", window).tolist() == split.label_map("a")[window].tolist()


@pytest.mark.parametrize(
    ("image", "label_map"),
    [
        (np.zeros((5, 9), np.uint8), np.zeros((5, 9), np.uint16)),
        (np.zeros((5, 9, 2), np.uint8), np.zeros((5, 9), np.uint8)),
        (np.zeros((5, 9, 3), np.float32), np.zeros((5, 9), np.uint8)),
        (np.zeros((5, 9, 1), np.uint8), np.zeros((5, 9), np.int64)),
        (np.zeros((5, 9, 3), np.uint8), np.zeros((5, 9, 1), np.uint8)),
    ],
)
def test_an_array_of_another_kind_is_damage(split, image, label_map):
    with PackWriter(split.folder / "images.npz") as pack:
        pack.add("a.image", image)
        pack.add("a.label_map", label_map)
    damaged = PreparedSplit.open(split.folder)
    with pytest.raises(InputError, match=r"images\.npz: a\.(image|label_map) is \(5, 9.*\) .*: damaged; run the stage"):
        _ = damaged.image("a"), damaged.label_map("a")


def test_a_pack_that_lost_an_image_is_named(split):
    with PackWriter(split.folder / "images.npz") as pack:
        pack.add("a.image", draw("a")[0])
    reopened = PreparedSplit.open(split.folder)
    assert reopened.image("a").shape == (5, 9, 3)
    with pytest.raises(
        InputError, match=r"images\.npz: no image of the image 'NA' in it; run the stage `prepare` again"
    ):
        list(reopened.images())


@pytest.mark.parametrize("name", ["images.npz", "table.csv"])
def test_a_split_without_one_of_its_files_is_refused(split, name):
    (split.folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: .*run the stage"):
        PreparedSplit.open(split.folder)
