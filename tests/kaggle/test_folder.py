"""Of a folder of anything, the competition's files are taken, whatever a browser made of them."""

import io
import os
import zipfile

import pytest

from pipeline.errors import InputError
from pipeline.images.archive import index_archive, open_archive
from pipeline.images.checksums import read_records
from pipeline.kaggle.fetch import fetch


def make_zip(entries, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def images(*image_ids, prefix="", **options):
    return make_zip({f"{prefix}{i}/images/{i}.png": f"pixels of {i}" for i in image_ids}, **options)


TRAIN, TEST, FINAL = images("a", "b"), images("c"), images("d", "e", "f")
SOLUTION = b"ImageId\n"
ZIPPED_SOLUTION = make_zip({"stage1_solution.csv": SOLUTION, "__MACOSX/._stage1_solution.csv": "x"})
OUTER = make_zip(
    {
        "stage1_train.zip": TRAIN,
        "stage1_test.zip": TEST,
        "stage1_solution.csv.zip": ZIPPED_SOLUTION,
        "__MACOSX/._stage1_test.zip": "x",
        "classes.csv": "x",
    }
)
FROM_OUTER = {"stage1_solution.csv": SOLUTION, "stage1_test.zip": TEST, "stage1_train.zip": TRAIN}
FIXES = images("a", prefix="kaggle-dsbowl-2018-dataset-fixes-master/stage1_train/")
OTHERS = (
    *("holiday.zip", "bank.csv", "images.zip", "stage1.zip", "stage1_train.zip.txt", "my stage1_test.zip"),
    *("stage1_test_2.zip", "holiday/stage1_test.zip", "stage2_test_final.zip.crdownload", "stage1_solution.csv.part"),
)


@pytest.fixture
def fetch_from(tmp_path):
    """Return a function that puts files beside others in a folder, fetches from it, and returns what came."""
    folder, data = tmp_path / "Downloads", tmp_path / "data"

    def fetch_from(files):
        for name, content in (dict.fromkeys(OTHERS, TEST) | files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        fetched = fetch(str(folder), data)
        assert fetched == sorted(fetched, key=lambda file: file.path.name)
        assert {path.name for path in data.iterdir()} == {file.path.name for file in fetched} | {"checksums.json"}
        assert not any(file.new for file in fetch(str(folder), data))
        return {file.path.name: file.path.read_bytes() for file in fetched}

    return fetch_from


def unpack(content, folder):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {f"{folder}/{name}": archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"stage1_test.zip": TEST}, {"stage1_test.zip": TEST}),
        ({"Stage1_Test.ZIP": TEST}, {"stage1_test.zip": TEST}),
        ({"stage1_test (1).zip": TEST}, {"stage1_test.zip": TEST}),
        ({"stage1_test(12).zip": TEST}, {"stage1_test.zip": TEST}),
        ({"stage1_test copy 2.zip": TEST}, {"stage1_test.zip": TEST}),
        ({"stage1_test - Copy (2).zip": TEST}, {"stage1_test.zip": TEST}),
        (
            {"stage1_test-1.zip": TEST, "stage1_train 2.zip": TRAIN},
            {"stage1_test.zip": TEST, "stage1_train.zip": TRAIN},
        ),
        ({"stage2_test_final.zip": FINAL}, {"stage2_test_final.zip": FINAL}),
        ({"stage1_solution (1).csv": SOLUTION}, {"stage1_solution.csv": SOLUTION}),
        ({"stage1_solution.csv.zip": ZIPPED_SOLUTION}, {"stage1_solution.csv": SOLUTION}),
        ({"stage1_solution.csv (1).zip": ZIPPED_SOLUTION}, {"stage1_solution.csv": SOLUTION}),
        ({"stage2_sample_submission_final.csv": SOLUTION}, {"stage2_sample_submission_final.csv": SOLUTION}),
        ({"data-science-bowl-2018.zip": OUTER}, FROM_OUTER),
        ({"data-science-bowl-2018 (1).zip": OUTER}, FROM_OUTER),
        ({"data-science-bowl-2018/stage1_train.zip": TRAIN}, {"stage1_train.zip": TRAIN}),
        ({"data-science-bowl-2018/data-science-bowl-2018.zip": OUTER}, FROM_OUTER),
        (unpack(OUTER, "data-science-bowl-2018 2"), FROM_OUTER),
        ({"kaggle-dsbowl-2018-dataset-fixes-master.zip": FIXES}, {"stage1_train.zip": FIXES}),
    ],
)
def test_the_files_of_the_competition_are_taken_and_no_others(fetch_from, files, names):
    assert fetch_from(files) == names


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (unpack(TEST, "stage1_test"), "stage1_test.zip"),
        (unpack(TRAIN, "stage1_train (1)"), "stage1_train.zip"),
        (unpack(FINAL, "data-science-bowl-2018/stage2_test_final"), "stage2_test_final.zip"),
        (unpack(FIXES, "."), "stage1_train.zip"),
    ],
)
def test_unpacked_folders_are_zipped_anew_to_the_same_bytes(fetch_from, tmp_path, files, name):
    litter = {f"{next(iter(files)).split('/images/')[0]}/{path}": b"x" for path in (".DS_Store", "images/._c.png")}
    came = fetch_from(files | litter)
    assert list(came) == [name]
    archive = open_archive(tmp_path / "data" / name)
    assert len(index_archive(archive, labelled=False, allow_unlabelled=True)) == len(files)
    assert sorted(archive.read(entry) for entry in archive.namelist()) == sorted(files.values())
    for path in sorted((tmp_path / "Downloads").rglob("*.png"), reverse=True):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o600)
    fetch(str(tmp_path / "Downloads"), tmp_path / "again")
    assert (tmp_path / "again" / name).read_bytes() == came[name]


def test_the_file_or_the_unpacked_folder_may_be_named_itself(tmp_path):
    (tmp_path / "data-science-bowl-2018 (3).zip").write_bytes(OUTER)
    for name, content in unpack(TEST, "stage1_test").items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    fetched = fetch(str(tmp_path / "data-science-bowl-2018 (3).zip"), tmp_path / "outer")
    assert [file.path.name for file in fetched] == sorted(FROM_OUTER)
    assert fetch(str(tmp_path / "stage1_test"), tmp_path / "data")[0].path.name == "stage1_test.zip"


def test_where_each_is_from_is_recorded(fetch_from, tmp_path):
    fetch_from({"data-science-bowl-2018.zip": OUTER, "stage2_test_final (2).zip": FINAL})
    folder = (tmp_path / "Downloads").resolve()
    assert {name: record["origin"] for name, record in read_records(tmp_path / "data").items()} == {
        "stage1_solution.csv": f"{folder}/data-science-bowl-2018.zip/stage1_solution.csv.zip",
        "stage1_test.zip": f"{folder}/data-science-bowl-2018.zip/stage1_test.zip",
        "stage1_train.zip": f"{folder}/data-science-bowl-2018.zip/stage1_train.zip",
        "stage2_test_final.zip": f"{folder}/stage2_test_final (2).zip",
    }


@pytest.mark.parametrize(
    "second",
    [
        {"stage1_train (1).zip": TRAIN},
        {"stage1_train (1).zip": images("b", "a", compression=zipfile.ZIP_DEFLATED)},
        {"data-science-bowl-2018.zip": make_zip({"stage1_train.zip": TRAIN})},
        unpack(TRAIN, "stage1_train"),
    ],
)
def test_two_files_of_the_same_images_are_one(fetch_from, tmp_path, second):
    assert fetch_from({"stage1_train.zip": TRAIN} | second) == {"stage1_train.zip": TRAIN}
    assert read_records(tmp_path / "data")["stage1_train.zip"]["origin"].endswith("/Downloads/stage1_train.zip")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"stage1_train.zip": TRAIN, "stage1_train (1).zip": images("a", "c")},
            r"/stage1_train\.zip and .*/stage1_train \(1\)\.zip: both are stage1_train\.zip, and they differ; keep one",
        ),
        (
            {"stage1_train.zip": TRAIN} | unpack(images("a"), "stage1_train"),
            r"/stage1_train\.zip and .*/stage1_train: both are stage1_train\.zip, and they differ",
        ),
        (
            {"stage1_train.zip": TRAIN, "kaggle-dsbowl-2018-dataset-fixes-master.zip": FIXES},
            r"/stage1_train\.zip and .*/kaggle-dsbowl-2018-dataset-fixes-master\.zip: both are stage1_train\.zip",
        ),
        (
            {"stage1_solution.csv": b"ImageId,Usage\n", "stage1_solution.csv.zip": ZIPPED_SOLUTION},
            r"/stage1_solution\.csv and .*/stage1_solution\.csv\.zip: both are stage1_solution\.csv, and they differ",
        ),
        (
            {},
            r"no file of the competition in it \(stage1_solution\.csv\.part is a download that has not finished",
        ),
        (
            {"data-science-bowl-2018.zip": make_zip({"data-science-bowl-2018.zip": OUTER})},
            "no file of the competition in",
        ),
        ({"stage1_test.zip": make_zip({})}, r"/stage1_test\.zip: no <image_id>/images/<name>\.png in it"),
        (
            {"data-science-bowl-2018.zip": make_zip({"stage1_test.zip": make_zip({})})},
            r"stage1_test\.zip: no <image_id>",
        ),
        ({"stage1_test/c/images/c.jpg": b"x"}, r"/stage1_test: no <image_id>/images/<name>\.png in it"),
        ({"stage1_test.zip": b""}, r"/stage1_test\.zip: no zip archive, or not a whole one; download it again"),
        ({"stage1_test.zip": b"<html>log in</html>"}, "no zip archive, or not a whole one"),
        ({"stage1_test.zip": FINAL[:-30]}, "no zip archive, or not a whole one"),
        ({"data-science-bowl-2018.zip": OUTER[:100]}, r"data-science-bowl-2018\.zip: not a whole zip file"),
        ({"stage1_solution.csv.zip": make_zip({"other.csv": "x"})}, r"stage1_solution\.csv: does not unpack"),
        ({"stage1_solution.csv.zip": b"x"}, r"stage1_solution\.csv: does not unpack"),
    ],
)
def test_what_cannot_be_taken_is_named_and_leaves_nothing(fetch_from, tmp_path, files, message):
    with pytest.raises(InputError, match=message) as error:
        fetch_from(files)
    assert "\n" not in str(error.value)
    assert list(tmp_path.glob("data/*")) == []


def test_all_names_are_told_where_none_is_there(tmp_path):
    (tmp_path / "stage1_test.zip.download").mkdir()  # Safari's, while it arrives
    with pytest.raises(InputError, match="has not finished") as error:
        fetch(str(tmp_path), tmp_path / "data")
    for name in ("stage1_train.zip", "stage2_solution_final.csv", "data-science-bowl-2018.zip", "dataset-fixes-master"):
        assert name in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_folder_is_fetched_into_itself(tmp_path):
    (tmp_path / "data-science-bowl-2018.zip").write_bytes(OUTER)
    assert all(file.new for file in fetch(str(tmp_path), tmp_path))
    assert sorted(path.name for path in tmp_path.glob("stage1*")) == sorted(FROM_OUTER)
