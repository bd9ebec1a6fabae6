"""What the yardstick for unseen acquisitions found for a run's own parameters.

In: the file in which `python -m pipeline.studies.unseen` keeps what it found, and a run's sections of params.yaml. Out:
the mean AP of each cluster that a short training did without. A row counts for the runs whose setting has its key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.params import DecodeParams, PredictParams, Recipe, SelectParams
from pipeline.provenance import fingerprint
from pipeline.tables import read_csv_table

MEASURE = "python -m pipeline.studies.unseen"
# What the yardstick sets by itself, pipeline/conf/study/unseen.yaml: a run may train longer, or with larger tiles.
SCHEDULE = ("epochs", "steps_per_epoch", "tile_px", "crop_px", "start_crop_px", "ema_decay")

# Of fewer clusters no interval is given: all of them differ in one direction by mere chance once in 16 times of five,
# and once in 32 of six.
FEWEST_CLUSTERS = 6

_COLUMNS = {"settings": str, "cluster": str, "images": int, "ap": float}


def settings_key(recipe: Recipe, predict: PredictParams, decode: DecodeParams, select: SelectParams) -> str:
    """Return a fingerprint (16 hex digits) of what is measured: all that decides nuclei but schedule and threads.

    The images that are learnt from are no part of it, since the yardstick has its own, nor are the number of trees and
    that of images that sizes are learnt from, of which it takes fewer. Nor is code: rows of an older revision count
    until they are measured again.
    """
    parts = {
        "contrast": recipe.contrast.model_dump(),
        "size": recipe.size.model_dump(exclude={"images"}),
        "targets": recipe.targets.model_dump(),
        "loss": recipe.loss.model_dump(),
        "unet": recipe.unet.model_dump(),
        "augment": recipe.augment.model_dump(),
        "train": recipe.train.model_dump(exclude=set(SCHEDULE)),
        "predict": predict.model_dump(),
        "decode": decode.model_dump(),
        "select": select.model_dump(exclude={"trees"}) | {"has_trees": select.trees > 0},
    }
    return fingerprint(parts)


def write_unseen(path: Path, key: str, rows: pd.DataFrame) -> None:
    """Write what was found for a setting; it replaces the rows of that key, and those of others stay.

    Args:
        path: of the CSV, which need not be there.
        key: as `settings_key` returns it.
        rows: cluster, images (how many were scored) and ap (their mean, in [0, 1]); a row per cluster.

    Raises:
        InputError: the file that is there is damaged.
    """
    columns = list(_COLUMNS)
    table = rows.assign(settings=key)[columns]
    if path.is_file():
        known = _read_table(path)
        table = pd.concat([known[known["settings"] != key], table])
    table = table.sort_values(["settings", "cluster"])
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.4g"))


def read_unseen(path: Path, key: str | None) -> dict[str, Any]:
    """Return what cv.json holds of the yardstick: `unseen_map`, the mean over clusters, and `unseen`, each one's AP.

    Where nothing was measured under the key, or there is none, they are None and empty.

    Raises:
        InputError: the file is missing or damaged.
    """
    table = _read_table(path)
    own = table[table["settings"] == key]
    clusters = dict(zip(own["cluster"], own["ap"].tolist(), strict=True))
    return {"unseen_map": unseen_map(clusters), "unseen": clusters}


def unseen_map(clusters: Mapping[str, float]) -> float | None:
    """Return the mean over clusters, each counting alike; None where there is none."""
    return sum(clusters.values()) / len(clusters) if clusters else None


def unseen_clusters(summary: Mapping[str, Any], source: str) -> dict[str, float]:
    """Return the AP of each cluster in a run's cv.json; empty where the yardstick was not measured.

    Args:
        summary: as in cv.json, also one that was written before there was a yardstick.
        source: what it is from, for errors.

    Raises:
        InputError: what stands there is no AP of clusters.
    """
    clusters = summary.get("unseen") or {}
    if not isinstance(clusters, dict) or not all(_is_score(value) for value in clusters.values()):
        raise InputError(f"{source}: its `unseen` is no AP in [0, 1] of each cluster; `dvc repro` writes it again")
    return {str(name): float(value) for name, value in clusters.items()}


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _read_table(path: Path) -> pd.DataFrame:
    cure = f"restore it by `git checkout`; `{MEASURE}` measures what a setting lacks"
    table = read_csv_table(path, _COLUMNS, cure, "table of unseen acquisitions")
    twice = table["cluster"][table.duplicated(["settings", "cluster"])]
    if not twice.empty:
        raise InputError(f"{path}: the cluster {twice.iloc[0]} has two rows of one setting; keep one, or {cure}")
    outside = table["cluster"][~table["ap"].between(0, 1)]
    if not outside.empty:
        raise InputError(f"{path}: the cluster {outside.iloc[0]}: its ap is not in [0, 1]; {cure}")
    return table
