"""The yardstick's file: which rows are a run's, what is made of them, and what a damaged file says."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.compose import CONF, compose_params
from pipeline.errors import InputError
from pipeline.experiments.unseen import (
    SCHEDULE,
    read_unseen,
    settings_key,
    unseen_clusters,
    unseen_map,
    write_unseen,
)
from pipeline.params import Params
from pipeline.studies.study import compose

HEAD = "settings,cluster,images,ap\n"


def key_of(params: Params) -> str:
    return settings_key(params.recipe, params.predict, params.decode, params.select)


def rows_of(**scores: float) -> pd.DataFrame:
    return pd.DataFrame({"cluster": list(scores), "images": 24, "ap": list(scores.values()), "seen_ap": 0.5})


@pytest.fixture(scope="module")
def full_key() -> str:
    return key_of(compose_params(["data=full", "train=cpu"]))


def test_the_full_run_is_what_the_yardstick_measures(full_key: str) -> None:
    assert key_of(compose("unseen")) == full_key
    assert len(full_key) == 16


@pytest.mark.parametrize(
    "changes",
    [
        ["data=stage2"],
        ["train.epochs=48", "train.steps_per_epoch=10"],
        ["train.tile_px=320", "train.crop_px=256", "train.start_crop_px=128", "train.ema_decay=0.99"],
        ["select.trees=300", "size.images=50"],
        ["folds.ids=[0,1,2]", "runtime.threads=1", "evaluate.bootstrap=10", "housekeeping.workers=1"],
    ],
)
def test_data_and_schedule_are_no_part_of_a_setting(full_key: str, changes: list[str]) -> None:
    assert key_of(compose_params(["data=full", "train=cpu", *changes])) == full_key


@pytest.mark.parametrize(
    "change",
    [
        "augment=weak",
        "augment.effects.noise.std=0.07",
        "++augment.effects.one_more.probability=0.5",
        "contrast.stretch=false",
        "contrast.density=false",
        "size.object_diameter_px=30",
        "targets.boundary_px=3",
        "loss.terms.dice.weight=0.5",
        "unet=vanilla",
        "train.lr=0.001",
        "train.batch=8",
        "train.seed=1",
        "predict.views=d4",
        "decode.min_area_px=[10]",
        "select.min_worth=0.2",
        "select.trees=0",
    ],
)
def test_what_else_decides_nuclei_makes_another_setting(full_key: str, change: str) -> None:
    changed = ["data=full", "train=cpu", change]
    assert key_of(compose_params(changed)) != full_key
    assert key_of(compose_params(changed)) == key_of(compose("unseen", [change]))


def test_the_schedule_is_what_the_yardstick_sets() -> None:
    """Another key in its file would make another setting of every run."""
    content = yaml.safe_load((CONF / "study" / "unseen.yaml").read_text())
    assert {*content["train"], "epochs"} == set(SCHEDULE)
    assert set(content["select"]) == {"trees"}
    assert set(content["size"]) == {"images"}
    assert set(content) == {"defaults", "data", "train", "size", "select", "housekeeping"}


def test_rows_of_several_settings_lie_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "unseen.csv"
    path.write_text(HEAD)
    assert read_unseen(path, "a1") == {"unseen_map": None, "unseen": {}}
    write_unseen(path, "b2", rows_of(pale=0.5))
    write_unseen(path, "a1", rows_of(pink=0.123456, dark=0.4))
    assert path.read_text() == f"{HEAD}a1,dark,24,0.4\na1,pink,24,0.1235\nb2,pale,24,0.5\n"
    assert read_unseen(path, "a1") == {"unseen_map": pytest.approx(0.26175), "unseen": {"dark": 0.4, "pink": 0.1235}}
    assert read_unseen(path, "b2") == {"unseen_map": 0.5, "unseen": {"pale": 0.5}}
    # What is measured again replaces all that was there of it, and the same rows give the same bytes.
    write_unseen(path, "a1", rows_of(dark=0.6))
    before = path.read_bytes()
    assert read_unseen(path, "a1")["unseen"] == {"dark": 0.6}
    write_unseen(path, "b2", rows_of(pale=0.5))
    assert path.read_bytes() == before
    assert read_unseen(path, "c3")["unseen_map"] is None


def test_a_key_of_digits_stays_text_and_a_file_need_not_be_there(tmp_path: Path) -> None:
    path = tmp_path / "folds" / "unseen.csv"
    write_unseen(path, "0012345678901234", rows_of(dark=0.0, pale=1.0))
    assert read_unseen(path, "0012345678901234") == {"unseen_map": 0.5, "unseen": {"dark": 0.0, "pale": 1.0}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a readable table of unseen acquisitions"),
        ("settings,cluster,ap\n", "no column 'images'"),
        (f"{HEAD}a1,dark,24,nan\n", "has ap 'nan', not a number"),
        (f"{HEAD}a1,dark,24,1.5\n", "the cluster dark: its ap is not in"),
        (f"{HEAD}a1,dark,24,0.5,7\n", "more values than columns"),
        (f"{HEAD}a1,dark,24,0.5\na1,dark,24,0.6\n", "the cluster dark has two rows of one setting"),
        (f"{HEAD}<<<<<<< HEAD\n", "<<<<<<< HEAD"),
    ],
)
def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "unseen.csv"
    path.write_text(text)
    for use in (lambda: read_unseen(path, "a1"), lambda: write_unseen(path, "a1", rows_of(dark=0.5))):
        with pytest.raises(InputError, match=words) as caught:
            use()
        assert str(caught.value).startswith(f"{path}: ")
        assert "`git checkout`" in str(caught.value)
    assert path.read_text() == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unseen\.csv: not a readable .*; restore it by `git checkout`"):
        read_unseen(tmp_path / "unseen.csv", "a1")


def test_the_clusters_of_a_summary() -> None:
    assert unseen_clusters({"cv_map": 0.5}, "x") == {}  # of a run from before there was a yardstick
    assert unseen_clusters({"unseen_map": None, "unseen": {}}, "x") == {}
    assert unseen_clusters({"unseen": {"dark": 1, "pale": 0.25}}, "x") == {"dark": 1.0, "pale": 0.25}
    assert unseen_map({}) is None
    for damaged in ([0.5], {"dark": "0.5"}, {"dark": 2}, {"dark": None}, {"dark": True}, {"dark": float("nan")}):
        with pytest.raises(InputError, match=r"cv\.json: its `unseen` is no AP"):
            unseen_clusters({"unseen": damaged}, "cv.json")


def test_the_file_in_git_is_whole() -> None:
    read_unseen(Path(__file__).resolve().parents[2] / "folds" / "unseen.csv", "a1")
