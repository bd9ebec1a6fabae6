"""What the yardstick hands on to runs: rows of a setting that were measured as runs are compared, once all are there.

In: the rows of results/unseen.csv and the parameters of now. Out: rows of folds/unseen.csv, which the stage `evaluate`
reads. A setting is known by its parameters, not by its name: what `default` was before a default changed is another.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.experiments.unseen import SCHEDULE, settings_key, write_unseen
from pipeline.params import Params
from pipeline.studies.study import compose


def name_settings(rows: pd.DataFrame, key: Mapping[str, str], params: Params) -> str:
    """Return the fingerprint of the parameters; empty where they are not trained by the yardstick's own schedule.

    Args:
        rows: as in results/unseen.csv; older ones have no column `settings`.
        key: setting and length.
        params: of now.

    Raises:
        InputError: data or folds are not the yardstick's own, or rows of this setting and length were measured with
            other parameters.
    """
    plain = compose("unseen")
    data = params.data.model_copy(update={"dir": plain.data.dir})
    if (data, params.folds) != (plain.data, plain.folds):
        raise InputError(
            "-S data or folds: the yardstick is of stage1_train alone, by its own folds; other parameters can be set"
        )
    same_trees = params.select.trees in (0, plain.select.trees)
    if not same_trees or any(getattr(params.train, name) != getattr(plain.train, name) for name in SCHEDULE):
        return ""
    settings = settings_key(params.recipe, params.predict, params.decode, params.select)
    if "settings" in rows and set(_rows_of(rows, key)["settings"]) - {"", settings}:
        raise InputError(
            f"{key['setting']}, {key['length']}: its rows were measured with other parameters, as before a default "
            "changed; give those of now another name by --setting, or remove the rows"
        )
    return settings


def hand_on(path: Path, rows: pd.DataFrame, key: Mapping[str, str], settings: str, clusters: set[str]) -> None:
    """Write the rows of a setting to `path`, where each of `clusters` has one that is known to be of its parameters."""
    if not settings or "settings" not in rows:
        return
    own = _rows_of(rows, key)
    own = own[(own["settings"] == settings) & own["cluster"].isin(clusters)]
    if set(own["cluster"]) == clusters:
        write_unseen(path, settings, own)
        print(f"{path}: all clusters of {key['setting']}, for runs with its parameters; `dvc repro` notes them")


def _rows_of(rows: pd.DataFrame, key: Mapping[str, str]) -> pd.DataFrame:
    return rows[(rows[list(key)] == pd.Series(key)).all(axis=1)]
