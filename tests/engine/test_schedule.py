"""The schedule for another number of cores, by hand."""

import itertools
from pathlib import Path

import pytest

from pipeline.engine.schedule import _AFTER, _BEFORE, schedule
from pipeline.errors import InputError
from pipeline.yaml_files import read_yaml
from tests.engine.items import FOLD, SHARE

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {"prepare": 6.0, "folds": 2.0, "evaluate": 9.0, "submit": 3.0, "report": 1.0, "predict_testset@main-0": 14.0}
for fold, train_s in enumerate((100.0, 50.0, 80.0)):
    SECONDS |= {f"train@main-{fold}": train_s, f"size@main-{fold}": 10.0, f"predict_oof@main-{fold}": 20.0}
PARTS = [FOLD._replace(items=dict([*FOLD.items.items()][:3])), SHARE._replace(items=dict([*SHARE.items.items()][:1]))]


def ends(places):
    return {stage: end_s for stage, _, end_s in schedule(SECONDS, PARTS, places)}


def test_one_place_runs_all_after_one_another():
    slots = schedule(SECONDS, PARTS, 1)
    assert slots[-1].end_s == sum(SECONDS.values())
    assert all(before.end_s == after.begin_s for before, after in itertools.pairwise(slots))


def test_a_fold_takes_the_place_that_is_free_first():
    # Folds 0 and 1 end at 8 + 130 and 8 + 80; fold 2 follows fold 1 and ends at 88 + 110.
    assert [ends(2)[f"predict_oof@main-{fold}"] for fold in range(3)] == [138, 88, 198]
    assert ends(2)["predict_testset@main-0"] == 198 + 14  # waits for all folds
    assert ends(2)["report"] == 198 + 14 + 13


def test_the_slowest_fold_decides_where_each_has_a_place():
    assert ends(3)["report"] == ends(8)["report"] == 8 + 130 + 14 + 13


def test_a_stage_that_was_up_to_date_takes_no_time():
    slots = schedule({name: value for name, value in SECONDS.items() if name not in ("folds", "submit")}, PARTS, 1)
    assert slots[-1].end_s == sum(SECONDS.values()) - 2 - 3


def test_a_stage_without_seconds_is_named():
    with pytest.raises(
        InputError, match=r"^size@main-1 has noted no seconds here; `dvc repro --force --single-item size@main-1`"
    ):
        schedule({name: value for name, value in SECONDS.items() if name != "size@main-1"}, PARTS, 2)


def test_every_stage_of_dvc_yaml_has_its_place():
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    assert sorted(stages) == sorted([*_BEFORE, *FOLD.stages, *SHARE.stages, *_AFTER])
