"""Rows of the yardstick: known by their parameters, never mixed, and handed on to runs as whole settings."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.experiments.unseen import read_unseen, settings_key
from pipeline.params import Params
from pipeline.studies.rows import hand_on, name_parameters, refuse_mixture
from pipeline.studies.study import compose
from pipeline.studies.yardstick import LENGTHS

KEY = {"setting": "default", "length": "short"}


def make_rows(settings: str, clusters: str, **changes: object) -> pd.DataFrame:
    rows = pd.DataFrame({"cluster": list(clusters), "images": 24, "ap": 0.5, "settings": settings, "changes": ""})
    return rows.assign(**{**KEY, **changes})


@pytest.fixture(scope="module")
def params() -> Params:
    return compose("unseen")


def test_a_run_knows_only_rows_of_the_yardsticks_own_schedule(params: Params) -> None:
    known = settings_key(params.recipe, params.predict, params.decode, params.select)
    assert name_parameters(params) == known
    names = {known}
    for changes in (["augment=weak"], ["select.trees=0"]):
        other = compose("unseen", changes)
        names.add(name_parameters(other))
        assert name_parameters(other) == settings_key(other.recipe, other.predict, other.decode, other.select)
    for changes in (LENGTHS["full"], ["train.ema_decay=0.9"], ["select.trees=50"]):
        names.add(name_parameters(compose("unseen", list(changes))))
    assert len(names) == 6
    with pytest.raises(InputError, match="-S data or folds: the yardstick is of stage1_train alone"):
        name_parameters(compose("unseen", ["folds.seed=7"]))


def test_rows_of_other_parameters_under_one_name_are_refused() -> None:
    for rows in (make_rows("a1", "ab"), make_rows("b2", "a", length="full"), make_rows("b2", "a", setting="other")):
        refuse_mixture(rows, KEY, "", "a1")
    for settings in ("b2", ""):  # rows of old revisions have none
        with pytest.raises(InputError, match="default, short: its rows were measured with other parameters"):
            refuse_mixture(make_rows(settings, "ab"), KEY, "", "a1")
    with pytest.raises(InputError, match="--setting default was measured with -S nothing; give these changes another"):
        refuse_mixture(make_rows("a1", "ab"), KEY, "augment=weak", "a1")


def test_a_setting_is_handed_on_when_all_its_clusters_are_there(tmp_path: Path, params: Params) -> None:
    path = tmp_path / "unseen.csv"
    own = name_parameters(params)
    rows = [make_rows(own, "ab"), make_rows("", "c"), make_rows(own, "c", setting="other")]
    rows = pd.concat([*rows, make_rows(own, "c", length="full"), make_rows("b2", "c")])
    for some in (rows, rows[:0]):
        hand_on(path, some, "default", params, {"a", "b", "c"})
    # Of another schedule than the yardstick's own: no run has these parameters.
    longer = compose("unseen", ["train.steps_per_epoch=600"])
    hand_on(path, make_rows(name_parameters(longer), "abc"), "default", longer, {"a", "b", "c"})
    assert not path.exists()
    # A probe is no cluster.
    hand_on(path, make_rows(own, "abcp"), "default", params, {"a", "b", "c"})
    assert read_unseen(path, own) == {"unseen_map": 0.5, "unseen": {"a": 0.5, "b": 0.5, "c": 0.5}}
