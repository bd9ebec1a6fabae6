"""What the yardstick hands on to runs: whole settings, known by their parameters."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.experiments.unseen import read_unseen, settings_key
from pipeline.params import Params
from pipeline.studies.measured import hand_on, name_settings
from pipeline.studies.study import compose
from pipeline.studies.unseen import LENGTHS

KEY = {"setting": "default", "length": "short"}


def make_rows(settings: str, clusters: str, **changes: object) -> pd.DataFrame:
    rows = pd.DataFrame({"cluster": list(clusters), "images": 24, "ap": 0.5, "settings": settings})
    return rows.assign(**{**KEY, **changes})


@pytest.fixture(scope="module")
def params() -> Params:
    return compose("unseen")


def test_only_what_has_the_yardsticks_own_schedule_has_a_name(params: Params) -> None:
    settings = name_settings(pd.DataFrame(), KEY, params)
    assert settings == settings_key(params.recipe, params.predict, params.decode, params.select)
    weak = name_settings(pd.DataFrame(), KEY, compose("unseen", ["augment=weak"]))
    assert weak not in ("", settings)
    assert name_settings(pd.DataFrame(), KEY, compose("unseen", ["select.trees=0"])) not in ("", settings)
    for changes in (LENGTHS["full"], ["train.ema_decay=0.9"], ["select.trees=50"]):
        assert name_settings(pd.DataFrame(), KEY, compose("unseen", list(changes))) == ""


def test_rows_of_other_parameters_under_one_name_are_refused(params: Params) -> None:
    for rows in (
        make_rows("", "ab"),
        make_rows("a1", "ab").drop(columns="settings"),
        make_rows("a1", "a", length="full"),
    ):
        name_settings(rows, KEY, params)
    with pytest.raises(InputError, match="default, short: its rows were measured with other parameters"):
        name_settings(make_rows("a1", "ab"), KEY, params)


def test_a_setting_is_handed_on_when_all_its_clusters_are_there(tmp_path: Path) -> None:
    path = tmp_path / "unseen.csv"
    rows = pd.concat([make_rows("a1", "ab"), make_rows("", "c"), make_rows("a1", "c", setting="other")])
    for some in (rows, rows.drop(columns="settings"), pd.DataFrame()):
        hand_on(path, some, KEY, "a1", {"a", "b", "c"})
    hand_on(path, rows, KEY, "", {"c"})
    assert not path.exists()
    # A probe is no cluster.
    hand_on(path, pd.concat([make_rows("a1", "abcp")]), KEY, "a1", {"a", "b", "c"})
    assert read_unseen(path, "a1") == {"unseen_map": 0.5, "unseen": {"a": 0.5, "b": 0.5, "c": 0.5}}
