"""An archive becomes a pack and its tables: every image, every nucleus, every fault, whatever the number of workers."""

import io
import zipfile
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.images.prepare import prepare_split, read_sizes
from pipeline.images.splits import PreparedSplit
from pipeline.images.store import Pack
from pipeline.images.table import PROBLEM_COLUMNS, TABLE_COLUMNS, read_table
from tests.tiny import tiny_source

FAULTS = ["empty_masks", "overlap_px", "covered_masks", "dropped_specks", "fragments", "filled_holes"]
FILES = ["images.npz", "problems.csv", "table.csv"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    return folder


@pytest.fixture
def prepare(folder, data_params, housekeeping):
    """Return a function that prepares a competition zip in `folder`, and returns the table."""

    def prepare(path, labelled=True, **changes):
        sources = {"made": tiny_source(path.name, "competition")}
        data = data_params.model_copy(update=changes)
        return prepare_split(sources, path.parent, folder, labelled, data, housekeeping)

    return prepare


def box(top, left, height, width, shape=(20, 30)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + height, left : left + width] = 255
    return mask


@pytest.fixture
def faulty(make_archive):
    """Return an archive of two images, one with every fault of annotation, one without nuclei by an empty mask."""
    ring = box(10, 0, 5, 5)
    ring[12, 2] = 0
    two_parts = box(0, 20, 2, 4) | box(5, 20, 2, 2)
    return make_archive(
        {
            "001/images/001.png": np.full((20, 30, 3), (230, 225, 235), np.uint8),
            "001/masks/a.png": box(0, 0, 4, 4),
            "001/masks/b.png": box(3, 0, 2, 4),  # 4 px of a, and smaller
            "001/masks/c.png": ring,
            "001/masks/d.png": two_parts,
            "001/masks/e.png": box(18, 28, 1, 2),  # a speck
            "001/masks/f.png": box(0, 0, 0, 0),  # empty
            "001/masks/g.png": box(0, 20, 2, 4),  # a part of d
            "001/masks/h.png": box(15, 15, 3, 3),
            "001/masks/i.png": box(15, 15, 3, 3),  # covers h
            "NA/images/NA.png": np.full((7, 9), 12, np.uint8),
            "NA/masks/a.png": np.zeros((7, 9), np.uint8),
        }
    )


def test_the_table_counts_every_fault(faulty, folder, prepare):
    prepare(faulty)
    table = read_table(folder)
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert list(table["image_id"]) == ["001", "NA"]  # ids stay text
    assert list(table["source"]) == ["made", "made"]
    first, second = (row._asdict() for row in table.itertuples(index=False))
    assert [first[name] for name in ("height", "width", "nuclei", "image_type")] == [20, 30, 6, "purple_on_white"]
    # Areas: a 12, b 8, c 25, d 4, g 8, i 9.
    assert first["median_area_px"] == 8.5
    assert [first[name] for name in FAULTS] == [1, 4 + 8 + 9, 1, 1, 1, 1]
    assert [second[name] for name in ("height", "width", "nuclei", "median_area_px")] == [7, 9, 0, 0.0]
    assert [second[name] for name in FAULTS] == [1, 0, 0, 0, 0, 0]


def test_the_table_of_problems_names_each_mask(faulty, folder, prepare):
    prepare(faulty)
    problems = pd.read_csv(folder / "problems.csv", dtype=str, keep_default_na=False)
    assert tuple(problems.columns) == PROBLEM_COLUMNS
    found = sorted(problems[["image_id", "mask_id", "problem", "value"]].itertuples(index=False, name=None))
    assert found == [
        ("001", "b", "overlap", "4"),
        ("001", "c", "hole", "1"),
        ("001", "d", "fragment", "4"),
        ("001", "e", "speck", "2"),
        ("001", "f", "empty", "0"),
        ("001", "g", "overlap", "8"),
        ("001", "h", "covered", "9"),
        ("001", "i", "overlap", "9"),
        ("NA", "a", "empty", "0"),
    ]


def test_the_pack_holds_the_images_and_the_label_maps(faulty, folder, prepare):
    prepare(faulty)
    pack = Pack(folder / "images.npz")
    assert sorted(pack) == ["001.image", "001.label_map", "NA.image", "NA.label_map"]
    assert pack["NA.image"].shape == (7, 9, 1)  # grey
    assert pack["001.image"].shape == (20, 30, 3)
    split = PreparedSplit.open(folder)
    assert split.image("NA").tolist() == np.full((7, 9, 3), 12).tolist()
    assert (pack["NA.label_map"].dtype, split.label_map("NA").dtype) == (np.uint8, np.uint16)
    label_map = pack["001.label_map"]
    assert label_map[[0, 3, 12, 5, 0, 15], [0, 0, 2, 20, 20, 15]].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_test_set_has_no_label_maps(faulty, folder, prepare):
    table = prepare(faulty, labelled=False)
    assert sorted(Pack(folder / "images.npz")) == ["001.image", "NA.image"]
    assert not table[["nuclei", "median_area_px", *FAULTS]].to_numpy().any()


def test_images_without_masks_where_they_are_allowed(make_archive, folder, prepare):
    path = make_archive({"a/images/a.png": np.zeros((4, 5), np.uint8)})
    with pytest.raises(InputError, match=r"a/images/a\.png: no masks"):
        prepare(path)
    table = prepare(path, allow_unlabelled=True)
    assert table["nuclei"].tolist() == [0]
    assert not Pack(folder / "images.npz")["a.label_map"].any()


def test_no_source_makes_an_empty_split(folder, tmp_path, data_params, housekeeping):
    assert prepare_split({}, tmp_path, folder, False, data_params, housekeeping).empty
    table = read_table(folder)
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert table.empty
    assert list(pd.read_csv(folder / "problems.csv").columns) == list(PROBLEM_COLUMNS)
    assert len(Pack(folder / "images.npz")) == 0


def test_a_mask_of_another_size_is_named(make_archive, prepare):
    shapes = {"a/images/a.png": (4, 5), "a/masks/m.png": (5, 4)}
    path = make_archive({entry: np.zeros(shape, np.uint8) for entry, shape in shapes.items()})
    with pytest.raises(InputError, match=r"a/masks/m\.png: a mask of 5 x 4 px for an image of 4 x 5 px"):
        prepare(path)


LABELS = box(2, 2, 5, 5) // 255 + box(2, 7, 5, 5) // 255 * 2 + box(12, 20, 4, 4) // 255 * 7


class TestMaskFiles:
    @pytest.fixture
    def read_map(self, make_archive, folder, prepare):
        """Return a function that prepares an image with these mask files, and returns its label map."""

        def read_map(**masks):
            names = {f"a/masks/{name}.png": content for name, content in masks.items()}
            prepare(make_archive({"a/images/a.png": np.full((20, 30), 9, np.uint8)} | names))
            return Pack(folder / "images.npz")["a.label_map"]

        return read_map

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_a_label_image_is_a_nucleus_for_each_id(self, read_map, dtype):
        assert np.array_equal(read_map(labels=LABELS.astype(dtype)), np.where(LABELS == 7, 3, LABELS))

    def test_a_label_image_in_the_colours_of_a_palette(self, read_map):
        picture = Image.fromarray(LABELS)
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[9] * 12, 0, 0, 128])
        file = io.BytesIO()
        picture.save(file, "PNG")
        label_map = read_map(labels=file.getvalue())
        assert label_map[[3, 3, 13], [3, 8, 21]].tolist() == [3, 2, 1]  # by their colours
        assert np.array_equal(label_map > 0, LABELS > 0)

    def test_the_faults_of_a_label_image_are_those_of_masks(self, read_map, folder):
        faulty = LABELS.copy()
        faulty[4, 4], faulty[18, 0] = 0, 2
        read_map(labels=faulty)
        problems = pd.read_csv(folder / "problems.csv", dtype=str)
        assert problems[["mask_id", "problem", "value"]].to_numpy().tolist() == [
            ["labels.1", "hole", "1"],
            ["labels.2", "speck", "1"],
        ]

    def test_a_label_image_beside_masks(self, read_map, folder):
        label_map = read_map(labels=LABELS, more=box(16, 0, 4, 4), twice=box(12, 20, 4, 4))
        assert label_map.max() == 4
        assert label_map[[3, 3, 17, 13], [3, 8, 1, 21]].tolist() == [1, 2, 3, 4]
        problems = pd.read_csv(folder / "problems.csv", dtype=str)
        assert problems[["mask_id", "problem"]].to_numpy().tolist() == [["twice", "overlap"], ["labels.7", "covered"]]

    def test_a_mask_that_is_a_jpeg_by_another_name(self, read_map):
        file = io.BytesIO()
        mask = box(4, 8, 10, 12)
        Image.fromarray(mask).save(file, "JPEG", quality=90)
        assert np.array_equal(read_map(m=file.getvalue()), mask // 255)

    def test_values_that_are_neither_are_named(self, read_map):
        with pytest.raises(InputError, match=r"train\.zip: a/masks/m\.png: 3 values \(0, 1, 2\), .* in 6 pieces; save"):
            read_map(m=sum(box(3 * i, 4 * i, 2, 3) // 255 * (1 + i % 2) for i in range(6)))

    def test_one_mask_of_all_nuclei_is_named(self, read_map):
        scattered = box(0, 0, 4, 4) | box(0, 10, 4, 4) | box(10, 0, 4, 4)
        assert read_map(m=scattered).max() == 1
        scattered |= box(10, 10, 4, 4)
        assert read_map(m=scattered, other=box(16, 25, 3, 3)).max() == 2
        with pytest.raises(
            InputError, match=r"train\.zip: a/masks/m\.png: each mask .* in 4 pieces or more; give each"
        ):
            read_map(m=scattered)
        with pytest.raises(InputError, match="in 4 pieces or more"):
            read_map(m=scattered, other=np.roll(scattered, 15, axis=1))


@pytest.mark.parametrize("entry", ["a/images/a.png", "a/masks/m.png"])
def test_a_file_that_does_not_decode_is_named(make_archive, prepare, entry):
    entries = dict.fromkeys(["a/images/a.png", "a/masks/m.png"], np.zeros((4, 5), np.uint8))
    path = make_archive(entries | {entry: b"not an image"})
    with pytest.raises(InputError, match=entry):
        prepare(path)


def test_an_archive_replaced_at_the_same_path_is_read_anew(make_archive, folder, prepare):
    for level in (10, 20):
        path = make_archive({f"{level}/images/a.png": np.full((4, 5), level, np.uint8)})
        prepare(path, labelled=False)
        assert (Pack(folder / "images.npz")[f"{level}.image"] == level).all()


def test_sizes_of_a_test_archive(faulty):
    assert read_sizes(faulty, 1000) == {"001": (20, 30), "NA": (7, 9)}
    with pytest.raises(InputError, match=r"001/images/001\.png.* max_pixels = 599"):
        read_sizes(faulty, 599)


@pytest.fixture(scope="module")
def table(prepared_sample):
    return read_table(prepared_sample).set_index("image_id")


@pytest.fixture(scope="module")
def masks(sample):
    """Return image_id -> the masks (H, W) bool that are not empty, as Pillow reads them."""
    masks = defaultdict(list)
    with zipfile.ZipFile(sample / "stage1_train.zip") as archive:
        for name in archive.namelist():
            if "/masks/" in name:
                mask = np.asarray(Image.open(io.BytesIO(archive.read(name)))) > 0
                masks[name.split("/")[0]] += [mask.any(axis=2) if mask.ndim == 3 else mask]
    return {image_id: [mask for mask in found if mask.any()] for image_id, found in masks.items()}


class TestSample:
    def test_every_image_is_there(self, table, masks, prepared_sample):
        split = PreparedSplit.open(prepared_sample)
        assert sorted(masks) == list(table.index)
        assert sorted(Pack(prepared_sample / "images.npz")) == sorted(
            f"{i}.{kind}" for i in masks for kind in ("image", "label_map")
        )
        assert sorted(path.name for path in prepared_sample.iterdir()) == FILES
        for image_id, row in table.iterrows():
            assert split.image(image_id).shape == (row["height"], row["width"], 3)
            assert split.label_map(image_id).shape == (row["height"], row["width"])

    def test_a_nucleus_for_each_mask_that_is_not_empty(self, table, masks):
        assert list(table["nuclei"] + table["covered_masks"]) == [len(masks[image_id]) for image_id in table.index]
        assert not table["dropped_specks"].any()  # such a mask would get no id

    def test_label_maps_are_the_masks(self, table, masks, prepared_sample):
        pack = Pack(prepared_sample / "images.npz")
        clean = table.index[~table[FAULTS].any(axis=1)]
        assert len(clean) > 50
        for image_id in clean:
            label_map = pack[f"{image_id}.label_map"]
            for mask in masks[image_id]:
                label = label_map[mask][0]
                assert np.array_equal(label_map == label, mask), image_id

    def test_ids_have_no_gaps_and_go_beyond_255(self, table, prepared_sample):
        pack = Pack(prepared_sample / "images.npz")
        for image_id, nuclei in table["nuclei"].items():
            assert np.array_equal(np.unique(pack[f"{image_id}.label_map"]), np.arange(nuclei + 1))
        assert table["nuclei"].max() > 255

    def test_two_workers_write_the_same_bytes(self, sample, prepared_sample, folder, data_params, housekeeping):
        two = housekeeping.model_copy(update={"workers": 2})
        prepare_split(data_params.sources, sample, folder, True, data_params, two)
        for name in FILES:
            assert (folder / name).read_bytes() == (prepared_sample / name).read_bytes(), name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("20,30", "1e999,30"),
        ("20,30", "-20,30"),
        ("20,30", "0,30"),
        ("20,30", "20.5,30"),
        ("20,30", "99999999999999999999,30"),
        ("20,30", "20,30,30"),
        ("20,30", "٢,30"),
        ("20,30", ""),
        ("NA,", "001,"),
        ("image_id", "image"),
    ],
)
def test_a_damaged_table_is_refused(faulty, folder, prepare, before, after):
    prepare(faulty, labelled=False)
    path = folder / "table.csv"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=r"table\.csv: .*; run the stage `prepare` again$") as error:
        read_table(folder)
    assert "\n" not in str(error.value)


BLANK, MASK = np.zeros((4, 5), np.uint8), box(1, 1, 2, 2, (4, 5))


def entries(*image_ids):
    return {f"{i}/images/{i}.png": BLANK for i in image_ids} | {f"{i}/masks/{i}.png": MASK for i in image_ids}


def source(archive, layout="competition", labels=None):
    return tiny_source(archive, layout, labels)


class TestSeveralSources:
    @pytest.fixture
    def prepare_all(self, tmp_path, folder, data_params, housekeeping):
        """Return a function that prepares sources in `tmp_path`, by default to learn from."""

        def prepare(labelled=True, **sources):
            return prepare_split(sources, tmp_path, folder, labelled, data_params, housekeeping)

        return prepare

    def test_all_become_one_table_sorted_by_image(self, make_archive, folder, prepare_all):
        make_archive(entries("b", "d") | {"d/masks/e.png": np.zeros((4, 5), np.uint8)}, "first.zip")
        make_archive(entries("a", "c") | {"c/masks/e.png": np.zeros((4, 5), np.uint8)}, "second.zip")
        table = prepare_all(zeta=source("first.zip"), alpha=source("second.zip"))
        assert table.equals(read_table(folder))
        assert table["image_id"].tolist() == list("abcd")
        assert table["source"].tolist() == ["alpha", "zeta", "alpha", "zeta"]
        assert len(Pack(folder / "images.npz")) == 8
        assert pd.read_csv(folder / "problems.csv")["image_id"].tolist() == ["c", "d"]

    def test_their_order_changes_nothing(self, make_archive, folder, prepare_all):
        make_archive(entries("b"), "first.zip")
        make_archive(entries("a"), "second.zip")
        one, other = {"zeta": source("first.zip")}, {"alpha": source("second.zip")}
        written = []
        for sources in (one | other, other | one):
            prepare_all(**sources)
            written.append([(folder / name).read_bytes() for name in FILES])
        assert written[0] == written[1]

    def test_another_layout_beside_the_first(self, make_archive, folder, prepare_all):
        make_archive(entries("b"), "first.zip")
        label = np.where(np.arange(5) == 2, 0, 255).astype(np.uint8)[None].repeat(4, axis=0)
        make_archive({"image/0.png": BLANK, "label/0.png": label}, "stack.zip")
        table = prepare_all(zips=source("first.zip"), sections=source("stack.zip", "stack"))
        assert table[["image_id", "source", "nuclei"]].to_numpy().tolist() == [
            ["b", "zips", 1],
            ["stack.0", "sections", 2],
        ]

    def test_an_image_that_two_of_them_have_is_refused(self, make_archive, prepare_all):
        make_archive(entries("a", "b"), "first.zip")
        make_archive(entries("b", "c"), "second.zip")
        with pytest.raises(InputError, match=r"second\.zip: the image b is in the source one too; rename or remove"):
            prepare_all(one=source("first.zip"), two=source("second.zip"))

    def test_an_unknown_layout_is_refused_before_anything_is_read(self, prepare_all):
        match = r"params\.yaml: data\.sources\.two\.layout is 'folders'; give one of competition, pairs"
        with pytest.raises(InputError, match=match):
            prepare_all(one=source("nowhere.zip"), two=source("nowhere.zip", "folders"))

    @pytest.mark.parametrize("archive", ["/etc/first.zip", "../first.zip", "a/../../first.zip"])
    def test_a_file_elsewhere_is_refused(self, prepare_all, archive):
        with pytest.raises(
            InputError, match=r"data\.sources\.one\.archive is '.*', which leads out of data\.dir.*link or"
        ):
            prepare_all(one=source(archive))
        with pytest.raises(InputError, match=r"data\.sources\.one\.labels is '.*', which leads out of data\.dir"):
            prepare_all(one=source("first.tif", "stack", archive))
        with pytest.raises(InputError, match=r"data\.test\.archive is '.*', which leads out of data\.dir"):
            prepare_all(labelled=False, test=source(archive))

    def test_labels_beside_a_competition_zip_are_refused(self, make_archive, prepare_all):
        make_archive(entries("a"), "first.zip")
        with pytest.raises(InputError, match=r"data\.sources\.one\.labels is more\.zip.*set it to null"):
            prepare_all(one=source("first.zip", labels="more.zip"))
