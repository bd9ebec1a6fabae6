"""A pack is small, comes back to the same bytes, and is as untrusted as any archive."""

import shutil
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.cli import main
from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.images.packed import write_packed
from pipeline.images.prepare import prepare_split
from pipeline.images.splits import PreparedSplit
from pipeline.images.store import Pack, PackWriter
from pipeline.images.table import read_table
from tests.conftest import encode_png
from tests.tiny import tiny_source

ROOT = Path(__file__).resolve().parents[2]
FILES = ["images.npz", "problems.csv", "table.csv"]
NO_PROBLEMS = b"image_id,mask_id,problem,value,handling\n"


def nuclei(count, shape=(40, 40)):
    """Return a label map of `count` nuclei of one pixel each."""
    label_map = np.zeros(shape, np.uint16)
    label_map.ravel()[: 2 * count : 2] = np.arange(1, count + 1)
    return label_map


def encode_webp(array, quality=101):
    return cv2.imencode(".webp", array, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()


@pytest.fixture
def read_back(tmp_path, data_params, housekeeping):
    """Return a function that prepares a pack, and returns the folder of the split."""

    def read(path, labelled=True, name="packed", labels=None, **changes):
        folder = tmp_path / "back"
        folder.mkdir(exist_ok=True)
        sources = {name: tiny_source(path.name, "packed", labels)}
        limits = housekeeping.model_copy(update=changes)
        prepare_split(sources, path.parent, folder, labelled, data_params, limits)
        return folder

    return read


@pytest.fixture
def two_sources(make_archive, tmp_path, data_params, housekeeping):
    """Return the folder of a prepared split of two sources, with all that an image may be."""
    rng = np.random.default_rng(0)
    masks = {f"many/masks/{n:03}.png": (nuclei(300) == n + 1) * np.uint8(255) for n in range(300)}
    split_mask = np.zeros((30, 20), np.uint8)
    split_mask[2:8, 2:8], split_mask[4, 4], split_mask[20:24, 3:9] = 255, 0, 255
    make_archive(masks | {"many/images/many.png": rng.integers(0, 255, (40, 40), np.uint8)}, "zeta.zip")
    make_archive(
        {
            "NA/images/NA.png": rng.integers(0, 255, (30, 20, 3), np.uint8),
            "NA/masks/m 1.png": split_mask,  # a hole and a fragment
            "NA/masks/NA.png": np.zeros((30, 20), np.uint8),
            "zero/images/zero.png": np.full((7, 9, 3), (230, 225, 235), np.uint8),
            "zero/masks/m.png": np.zeros((7, 9), np.uint8),
            "wide/images/wide.png": np.full((2, 2**14), 9, np.uint8),  # a pixel too many for WebP
            "wide/masks/m.png": np.full((2, 2**14), 255, np.uint8),
        },
        "alpha.zip",
    )
    folder = tmp_path / "prepared"
    folder.mkdir()
    names = ("zeta", "alpha")
    sources = {name: tiny_source(f"{name}.zip", "competition") for name in names}
    data = data_params.model_copy(update={"min_fragment_px": 0})
    prepare_split(sources, tmp_path, folder, True, data, housekeeping)
    return folder


def assert_same(folder, other):
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_the_sample_comes_back_byte_for_byte_and_small(prepared_sample, sample, tmp_path, read_back):
    path = tmp_path / "sample.zip"
    assert write_packed(prepared_sample, path, 1) == len(read_table(prepared_sample))
    assert_same(read_back(path), prepared_sample)
    assert path.stat().st_size < 0.8 * (sample / "stage1_train.zip").stat().st_size


def test_a_split_of_an_earlier_version_packs_to_the_same(two_sources, tmp_path):
    """It has three channels and two bytes of everything."""
    split, old = PreparedSplit.open(two_sources), tmp_path / "old"
    shutil.copytree(two_sources, old)
    with PackWriter(old / "images.npz") as pack:
        for image_id in split.image_ids:
            pack.add(f"{image_id}.image", split.image(image_id))
            pack.add(f"{image_id}.label_map", split.label_map(image_id))
    for folder in (two_sources, old):
        write_packed(folder, tmp_path / f"{folder.name}.zip", 1)
    assert (tmp_path / "old.zip").read_bytes() == (tmp_path / "prepared.zip").read_bytes()


@pytest.mark.parametrize("name", ["packed", "alpha"])
def test_several_sources_keep_their_names_whatever_the_pack_is_called(two_sources, tmp_path, read_back, name):
    write_packed(two_sources, tmp_path / "pack.zip", 1)
    folder = read_back(tmp_path / "pack.zip", name=name)
    assert_same(folder, two_sources)
    table = read_table(folder).set_index("image_id")
    assert table["source"].to_dict() == {"NA": "alpha", "many": "zeta", "wide": "alpha", "zero": "alpha"}
    assert table["nuclei"].to_dict() == {"NA": 1, "many": 300, "wide": 1, "zero": 0}


def test_what_lies_in_a_pack(two_sources, tmp_path):
    write_packed(two_sources, tmp_path / "pack.zip", 1)
    with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
        assert archive.namelist() == [
            "alpha/NA/image.webp", "alpha/NA/labels.png", "alpha/wide/image.png", "alpha/wide/labels.png",
            "alpha/zero/image.webp", "alpha/zero/labels.png", "zeta/many/image.webp", "zeta/many/labels.png",
            "problems.csv",
        ]  # fmt: skip
        assert archive.read("problems.csv") == (two_sources / "problems.csv").read_bytes()
        depths = [
            cv2.imdecode(np.frombuffer(archive.read(f"{name}/labels.png"), np.uint8), cv2.IMREAD_UNCHANGED).dtype
            for name in ("alpha/NA", "zeta/many")
        ]
    assert depths == [np.uint8, np.uint16]


def test_the_command_packs_to_equal_bytes_in_several_processes(two_sources, tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write_packed(two_sources, tmp_path / "one.zip", 1)
    main(["pack", "--prepared", "prepared", "--out", "packs/two.zip"])
    assert capsys.readouterr().out == "packs/two.zip: 4 images, 0.0 MB\n"
    assert (tmp_path / "packs" / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()


def test_several_processes_read_the_same(two_sources, tmp_path, read_back):
    write_packed(two_sources, tmp_path / "pack.zip", 1)
    assert_same(read_back(tmp_path / "pack.zip", workers=2), two_sources)


def test_without_labels_it_is_a_test_set(two_sources, tmp_path, read_back):
    write_packed(two_sources, tmp_path / "pack.zip", 1)
    pack, whole = (
        Pack(read_back(tmp_path / "pack.zip", labelled=False) / "images.npz"),
        Pack(two_sources / "images.npz"),
    )
    assert sorted(pack) == ["NA.image", "many.image", "wide.image", "zero.image"]
    assert all((pack[name] == whole[name]).all() for name in pack)
    assert (tmp_path / "back" / "problems.csv").read_bytes() == NO_PROBLEMS
    assert not read_table(tmp_path / "back")["nuclei"].any()


def test_the_parameters_of_a_pack_name_where_the_command_writes_it():
    data = compose_params(["data=packed"]).data
    (source,) = data.sources.values()
    assert (data.dir, source.archive, source.layout, data.test) == ("data/packed", "train.zip", "packed", None)


# What is never packed. -------------------------------------------------------------------------------------------


@pytest.fixture
def split(make_split):
    """Return the folder of a split of two images that can be packed."""
    folder = make_split({i: (np.full((4, 5, 3), 9, np.uint8), nuclei(2, (4, 5))) for i in "ab"}).folder
    (folder / "problems.csv").write_bytes(NO_PROBLEMS + b"a,m,overlap,3,given\nb,m,hole,1,filled\n")
    table = (folder / "table.csv").read_text().splitlines()
    row_a, row_b = table[1].split(","), table[2].split(",")
    row_a[10], row_b[14] = "3", "1"
    (folder / "table.csv").write_text("\n".join([table[0], ",".join(row_a), ",".join(row_b), ""]))
    return folder


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("table.csv", "1.0,4,5,2", "1.0,4,5,3", r"table\.csv: image 'a' has nuclei 3, but .* make 2"),
        (
            "table.csv",
            "a,made,1,1.0,4",
            "a,made,1,1.0,5",
            r"images\.npz: 'a\.image' is \(4, 5, 1\) uint8, and table\.csv",
        ),
        (
            "table.csv",
            "b,made,1,1.0",
            "b,mine,0,1.0",
            r"sources mine and made differ in `scored` or `weight`.*each alone",
        ),
        ("table.csv", "b,made", "c,made", r"problems\.csv: the image 'b' is not in table\.csv"),
        ("table.csv", "b,made", "b,../made", r"pack\.zip: .*leads out"),
        ("table.csv", "b,made", "b,my own", r"pack\.zip: my own/b: the source 'my own' has more than"),
        ("table.csv", "b,made", "b,a/b", r"pack\.zip: only 1 of 2 ids can be a folder's name"),
        ("problems.csv", "overlap,3", "overlap,2", r"table\.csv: image 'a' has overlap_px 3, but .* make 2"),
        ("problems.csv", "a,m,overlap", "b,m,overlap", r"table\.csv: image 'a' has overlap_px 3"),
        ("problems.csv", "a,m,overlap", "c,m,overlap", r"problems\.csv: not as the stage `prepare` writes it"),
        ("problems.csv", "value", "worth", r"problems\.csv: no column 'value'"),
        ("problems.csv", "given", '"given"', r"problems\.csv: not as the stage `prepare` writes it"),
    ],
)
def test_a_split_at_odds_with_itself_is_not_packed(split, tmp_path, name, before, after, words):
    text = (split / name).read_text()
    assert before in text
    (split / name).write_text(text.replace(before, after))
    with pytest.raises(InputError, match=words):
        write_packed(split, tmp_path / "packs" / "pack.zip", 1)
    assert not (tmp_path / "packs").exists() or not any((tmp_path / "packs").iterdir())


def test_a_test_split_is_not_packed(make_split, tmp_path):
    folder = make_split({"a": (np.zeros((4, 5, 3), np.uint8), None)}).folder
    (folder / "problems.csv").write_bytes(NO_PROBLEMS)
    with pytest.raises(InputError, match=r"images\.npz: no 'a\.label_map' in it; give the folder of a training split"):
        write_packed(folder, tmp_path / "pack.zip", 1)


def test_names_that_some_systems_take_for_one_are_not_packed(make_split, tmp_path):
    image = np.zeros((4, 5, 3), np.uint8), nuclei(1, (4, 5))
    folder = make_split({"A": image, "a": image}).folder
    (folder / "problems.csv").write_bytes(NO_PROBLEMS)
    with pytest.raises(InputError, match=r"pack\.zip: 'made/a/image\.webp': the same name as 'made/A/image\.webp'"):
        write_packed(folder, tmp_path / "pack.zip", 1)


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_an_encoder_that_loses_a_pixel_packs_nothing(split, tmp_path, monkeypatch, suffix):
    encode = cv2.imencode

    def lose(kind, array, options):
        array = array.copy()
        array[0, 0] = 0 if kind == suffix else array[0, 0]
        return encode(kind, array, options)

    monkeypatch.setattr(cv2, "imencode", lose)
    with pytest.raises(InputError, match=r"made/a/.*(come back as it was from OpenCV|without 1)"):
        write_packed(split, tmp_path / "pack.zip", 1)
    assert not (tmp_path / "pack.zip").exists()


# What is never read. ---------------------------------------------------------------------------------------------

GREY, LABELS = np.full((4, 5, 3), 9, np.uint8), nuclei(2, (4, 5)).astype(np.uint8)
GOOD = {
    "made/a/image.webp": encode_webp(GREY),
    "made/a/labels.png": LABELS,
    "made/b/image.png": GREY,
    "made/b/labels.png": LABELS,
    "problems.csv": NO_PROBLEMS + b"a,m,overlap,3,given\n",
}


def header_of(height, width):
    """Return a WebP whose header says another size."""
    data = bytearray(GOOD["made/a/image.webp"])
    rest = int.from_bytes(data[21:25], "little") >> 28 << 28
    data[21:25] = (rest | height - 1 << 14 | width - 1).to_bytes(4, "little")
    return bytes(data)


def test_the_pack_that_is_damaged_below_is_good(make_archive, read_back):
    table = read_table(read_back(make_archive(GOOD | {"README": b"", "__MACOSX/made/a/._image.webp": b""})))
    assert table[["image_id", "nuclei", "overlap_px"]].to_numpy().tolist() == [["a", 2, 3], ["b", 2, 0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict.fromkeys(GOOD), r"no <source>/<image_id>/image\.webp in it"),
        ({"made/a/image.webp": None}, r"made/a: labels without an image"),
        ({"made/a/image.png": GREY}, r"made/a: two images; keep one"),
        ({"made/a/labels.png": None}, r"made/a: no labels\.png"),
        ({"my own/c/image.png": GREY}, r"my own/c: the source 'my own' has more"),
        ({"made/c,d/image.png": GREY}, r"made/c,d: the id 'c,d' cannot stand in a CSV"),
        ({"other/a/image.png": GREY, "other/a/labels.png": LABELS}, r"the image a is in the source made too"),
        ({"../c/image.png": GREY}, r"leads out of the archive's folder"),
        ({"made/A/image.webp": GREY}, r"the same name as"),
        ({"made/a/image.webp": b"RIFF"}, r"made/a/image\.webp: no lossless WebP"),
        ({"made/a/image.webp": encode_png(GREY)}, r"made/a/image\.webp: no lossless WebP"),
        ({"made/a/image.webp": encode_webp(GREY, 90)}, r"made/a/image\.webp: no lossless WebP \(b'RIFF.*VP8 '\)"),
        ({"made/a/image.webp": GOOD["made/a/image.webp"][:30]}, r"made/a/image\.webp: does not decode"),
        (
            {"made/a/image.webp": encode_webp(np.full((4, 5, 4), 9, np.uint8))},
            r"made/a/image\.webp: decodes to \(4, 5, 4\) uint8, not to RGB",
        ),
        ({"made/a/image.webp": header_of(4, 6)}, r"made/a/(image\.webp|labels\.png): "),
        ({"made/b/image.png": b"\x89PNG\r\n\x1a\n"}, r"made/b/image\.png: a PNG that is cut short"),
        ({"made/b/labels.png": b"GIF89a"}, r"made/b/labels\.png: does not decode"),
        ({"made/b/labels.png": LABELS.T.copy()}, r"made/b/labels\.png: a label map of 5 x 4 px for an image of 4 x 5"),
        ({"made/b/labels.png": GREY}, r"made/b/labels\.png: a label map of 4 x 5 x 3 px"),
        ({"made/b/labels.png": LABELS * 2}, r"made/b/labels\.png: ids up to 4 without 1"),
        ({"problems.csv": None}, r"problems\.csv: not in it"),
        ({"problems.csv": b"\xff"}, r"problems\.csv: not a readable table of problems"),
        ({"problems.csv": b""}, r"problems\.csv: not a readable table of problems"),
        ({"problems.csv": b"image_id,problem\n"}, r"problems\.csv: no column 'mask_id'"),
        ({"problems.csv": NO_PROBLEMS + b"c,m,overlap,3,given\n"}, r"problems\.csv: no image 'c' in the pack"),
        ({"problems.csv": NO_PROBLEMS + b"a,m,overlap,3.5,given\n"}, r"problems\.csv: image 'a' has value '3\.5', not"),
        ({"problems.csv": NO_PROBLEMS + b"a,m,overlap,-3,given\n"}, r"problems\.csv: image 'a' has value '-3', not"),
        ({"problems.csv": NO_PROBLEMS + b"a,m,overlap,21,given\n"}, r"problems\.csv: image 'a' has a problem of 21 px"),
        ({"problems.csv": NO_PROBLEMS + b"a,m,overlap,3,given,x\n"}, r"problems\.csv: (not a readable|more values)"),
    ],
)
def test_a_damaged_pack_is_refused(make_archive, read_back, changes, words):
    entries = {name: content for name, content in (GOOD | changes).items() if content is not None}
    with pytest.raises(InputError, match=words) as error:
        read_back(make_archive(entries, "pack.zip"))
    assert "\n" not in str(error.value)
    assert "pack.zip" in str(error.value)


@pytest.mark.parametrize("name", ["made/a/image.webp", "made/b/image.png", "made/b/labels.png"])
def test_a_header_is_looked_at_before_anything_is_decoded(make_archive, read_back, monkeypatch, name):
    png = bytearray(encode_png(LABELS))
    png[16:24] = (2**14).to_bytes(4) * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4)
    only = {key: content for key, content in GOOD.items() if key.startswith(name[:7]) or key == "problems.csv"}
    only["problems.csv"] = NO_PROBLEMS
    path = make_archive(only | {name: header_of(2**14, 2**14) if name.endswith("webp") else bytes(png)})
    decode, decoded = cv2.imdecode, []
    monkeypatch.setattr(cv2, "imdecode", lambda data, how: decoded.append(len(data)) or decode(data, how))
    with pytest.raises(InputError, match=rf"{name}: its header says 16384 x 16384 px, more than max_pixels = 1000"):
        read_back(path, max_pixels=1000)
    assert len(decoded) == name.endswith("labels.png")  # only the image, which comes first


def test_labels_beside_a_pack_are_refused(make_archive, read_back):
    with pytest.raises(InputError, match=r"data\.sources\.packed\.labels is more\.zip.*set it to null"):
        read_back(make_archive(GOOD), labels="more.zip")
