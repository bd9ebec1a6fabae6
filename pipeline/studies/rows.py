"""Rows of results/unseen.csv: what was measured under which name, by which parameters, and what runs may read of it.

In: the rows that there are and the parameters of now. Out: rows of folds/unseen.csv, which the stage `evaluate` reads,
once all clusters are there. A setting is known by its parameters, not by its name: what `default` was before a default
changed is another. Where a default changes in the code alone, rename its rows and empty their `settings`: no parameter
tells them from those of now.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.experiments.unseen import SCHEDULE, settings_key, write_unseen
from pipeline.params import Params
from pipeline.provenance import fingerprint
from pipeline.studies.study import RESULTS, compose

ROWS = RESULTS / "unseen.csv"
_TEXT = ("setting", "length", "cluster", "changes", "settings", "device")


def read_rows() -> pd.DataFrame:
    """Return the rows that there are: those too that another call has written since this one began."""
    if not ROWS.is_file():
        return pd.DataFrame(columns=[*_TEXT, "learnt_images", "seen_ap", "ap"])
    return pd.read_csv(ROWS, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False)


def select_rows(rows: pd.DataFrame, key: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows whose columns have the values of `key`, as of a setting and a length."""
    return rows[(rows[list(key)] == pd.Series(key)).all(axis=1)]


def name_parameters(params: Params) -> str:
    """Return the fingerprint by which a run knows these parameters for its own.

    Where the yardstick's own schedule and trees are changed it is another, which no run has.

    Raises:
        InputError: data or folds are not the yardstick's own.
    """
    plain = compose("unseen")
    data = params.data.model_copy(update={"dir": plain.data.dir})
    if (data, params.folds) != (plain.data, plain.folds):
        raise InputError(
            "-S data or folds: the yardstick is of stage1_train alone, by its own folds; other parameters can be set"
        )
    key = settings_key(params.recipe, params.predict, params.decode, params.select)
    schedule, usual = ({name: getattr(each.train, name) for name in SCHEDULE} for each in (params, plain))
    if schedule == usual and params.select.trees in (0, plain.select.trees):
        return key
    return fingerprint({"settings": key, "schedule": schedule, "trees": params.select.trees})


def refuse_mixture(rows: pd.DataFrame, key: Mapping[str, str], changes: str, settings: str) -> None:
    """Raise where rows of this setting and length were measured with other parameters than those of now.

    Args:
        rows: as in results/unseen.csv.
        key: setting and length.
        changes: that -S names now.
        settings: the fingerprint of the parameters of now.

    Raises:
        InputError: what of them differs.
    """
    own = select_rows(rows, {"setting": key["setting"]})
    if other := set(own["changes"]) - {changes}:
        raise InputError(
            f"--setting {key['setting']} was measured with -S {other.pop() or 'nothing'}; give these changes another "
            "name"
        )
    if set(select_rows(own, key)["settings"]) - {settings}:
        raise InputError(
            f"{key['setting']}, {key['length']}: its rows were measured with other parameters, as before a default "
            "changed; give those of now another name by --setting, or remove the rows"
        )


def hand_on(path: Path, rows: pd.DataFrame, setting: str, params: Params, clusters: set[str]) -> None:
    """Write the short rows of a setting to `path`, where each of `clusters` has one of these parameters.

    Where a run cannot have them, as the yardstick's own schedule is changed, nothing is written.
    """
    settings = name_parameters(params)
    if settings != settings_key(params.recipe, params.predict, params.decode, params.select):
        return
    own = select_rows(rows, {"setting": setting, "length": "short", "settings": settings})
    own = own[own["cluster"].isin(clusters)]
    if set(own["cluster"]) == clusters:
        write_unseen(path, settings, own)
        print(f"{path}: all clusters of {setting}, for runs with its parameters; `dvc repro` notes them")
