"""The stage prepare writes two whole splits or nothing, and says in one line what is wrong."""

import subprocess
import sys

import numpy as np
import pytest
import yaml

from pipeline.errors import InputError
from pipeline.images.splits import PreparedSplit
from pipeline.params import DataParams
from pipeline.stages.prepare import main
from tests.tiny import tiny_source

FILES = ["images.npz", "problems.csv", "table.csv"]
BLANK = np.zeros((6, 8), np.uint8)
TRAIN = {"a/images/a.png": BLANK, "a/masks/m.png": np.full((6, 8), 255, np.uint8)}
TEST = {"b/images/b.png": BLANK}


def source(archive):
    return tiny_source(archive, "competition").model_dump()


TEST_SET = {"archive": "test.zip", "layout": "competition", "labels": None}


def with_data(params, **changes):
    data = DataParams.model_validate(params.data.model_dump() | changes)
    return params.model_copy(update={"data": data})


@pytest.fixture
def stage_params(params):
    one_worker = params.housekeeping.model_copy(update={"workers": 1})
    params = params.model_copy(update={"housekeeping": one_worker})
    return with_data(params, sources={"made": source("train.zip")}, test=TEST_SET, allow_unlabelled=False)


@pytest.fixture
def outs(tmp_path):
    return tmp_path / "prepared" / "train", tmp_path / "prepared" / "test"


def without_test(params):
    return with_data(params, test=None)


def listing(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_both_splits_are_written(make_archive, tmp_path, outs, stage_params, capsys):
    make_archive(TRAIN)
    make_archive(TEST, "test.zip")
    main(tmp_path, *outs, stage_params)
    assert [listing(out) for out in outs] == [FILES, FILES]
    assert listing(outs[0].parent) == ["test", "train"]
    train, test = map(PreparedSplit.open, outs)
    assert train.table["nuclei"].tolist() == [1]
    assert train.table["source"].tolist() == ["made"]
    assert train.label_map("a").max() == 1
    assert test.image_ids == ["b"]
    with pytest.raises(InputError, match="no label_map of the image 'b'"):
        test.label_map("b")
    printed = capsys.readouterr().out
    assert "train: 1 images (1 fluorescence), 1 nuclei" in printed
    assert "test: 1 images (1 fluorescence), 0 nuclei" in printed


def test_without_a_test_set_its_split_is_valid_and_empty(make_archive, tmp_path, outs, stage_params):
    make_archive(TRAIN)
    main(tmp_path, *outs, without_test(stage_params))
    assert listing(outs[1]) == FILES
    assert len(PreparedSplit.open(outs[1])) == 0


def test_all_sources_become_one_split(make_archive, tmp_path, outs, stage_params):
    make_archive(TRAIN, "first.zip")
    make_archive({name.replace("a", "z", 1): content for name, content in TRAIN.items()}, "second.zip")
    sources = {"zeta": source("first.zip"), "alpha": source("second.zip")}
    main(tmp_path, *outs, with_data(stage_params, sources=sources, test=None))
    split = PreparedSplit.open(outs[0])
    assert split.table[["image_id", "source"]].to_numpy().tolist() == [["a", "zeta"], ["z", "alpha"]]
    assert all(label_map.max() == 1 for _, label_map in split.label_maps())


def test_an_image_that_two_sources_have_leaves_nothing(make_archive, tmp_path, outs, stage_params):
    make_archive(TRAIN, "first.zip")
    make_archive(TRAIN, "second.zip")
    sources = {"zeta": source("first.zip"), "alpha": source("second.zip")}
    with pytest.raises(InputError, match=r"first\.zip: .*image.* a is in .*alpha too"):
        main(tmp_path, *outs, with_data(stage_params, sources=sources, test=None))
    assert listing(outs[0].parent) == []


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (TRAIN | {"a/masks/n.png": np.zeros((8, 6), np.uint8)}, TEST, r"a/masks/n\.png: a mask of 8 x 6 px"),
        (
            TRAIN | {"a/masks/n.png": np.arange(48, dtype=np.uint8).reshape(6, 8)},
            TEST,
            r"train\.zip: a/masks/n\.png: 48 values \(0, 1, 2 \.\.\), neither",
        ),
        (TRAIN, {"b/images/b.png": b"not an image"}, r"b/images/b\.png: does not decode"),
        (TRAIN, {"README.md": b"nothing here"}, r"test\.zip: no PNG of the form"),
        (TRAIN, None, r"test\.zip: no such archive"),
        (None, TEST, r"train\.zip: no such archive"),
    ],
)
def test_a_fault_in_either_leaves_nothing(make_archive, tmp_path, outs, stage_params, train, test, message):
    for entries, name in ((train, "train.zip"), (test, "test.zip")):
        if entries is not None:
            make_archive(entries, name)
    with pytest.raises(InputError, match=message):
        main(tmp_path, *outs, stage_params)
    assert listing(outs[0].parent) == []


def test_a_fault_leaves_the_splits_of_an_earlier_run(make_archive, tmp_path, outs, stage_params):
    make_archive(TRAIN)
    main(tmp_path, *outs, without_test(stage_params))
    before = (outs[0] / "images.npz").read_bytes()
    make_archive(TRAIN | {"stray/masks/m.png": BLANK})
    with pytest.raises(InputError, match=r"stray/masks/m\.png: a mask without an image"):
        main(tmp_path, *outs, without_test(stage_params))
    assert listing(outs[0].parent) == ["test", "train"]
    assert (outs[0] / "images.npz").read_bytes() == before


def test_a_missing_folder_is_named(tmp_path, outs, stage_params):
    with pytest.raises(InputError, match=r"nowhere: no such folder; .* fetch"):
        main(tmp_path / "nowhere", *outs, stage_params)


def test_as_a_command_it_ends_in_one_line(make_archive, tmp_path, outs, stage_params):
    make_archive(TRAIN | {"a/masks/n.png": np.zeros((8, 6), np.uint8)})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(without_test(stage_params).model_dump(mode="json")))
    arguments = ["--archives", tmp_path, "--train-out", outs[0], "--test-out", outs[1]]
    arguments += ["--params", tmp_path / "params.yaml", "--journal", tmp_path / "journal"]
    command = [sys.executable, "-m", "pipeline.stages", "prepare", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == done.stderr.splitlines()[-1:]
    assert "a/masks/n.png: a mask of 8 x 6 px for an image of 6 x 8 px" in lines[0]
    assert listing(outs[0].parent) == []
    assert listing(tmp_path / "journal") == []
