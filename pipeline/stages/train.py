"""train@m-k: the network of a member and a fold, from the prepared images of the other folds."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.folds.table import open_folded
from pipeline.folds.training import train_fold
from pipeline.folds.watch import HeldOutWatch
from pipeline.params import Params


def main(
    prepared: Path, folds: Path, fold: int, weights: Path, history: Path, resume: Path, params: Params
) -> dict[str, Any]:
    """Train the network of one fold; an interrupted training goes on where it was."""
    if fold not in params.folds.ids:
        raise InputError(f"fold {fold} is not one of folds.ids, {list(params.folds.ids)}")
    folded = open_folded(prepared, folds, params.folds.ids)
    recipe, housekeeping = params.recipe, params.housekeeping
    watch = HeldOutWatch(folded.inside(fold), recipe, params.predict, params.decode, housekeeping)
    trainer = train_fold(folded.outside(fold), fold, recipe, weights, resume / f"fold{fold}", housekeeping, watch=watch)
    write_text(history, pd.DataFrame(trainer.history).to_csv(index=False, lineterminator="\n"))
    return {"seconds": trainer.seconds, "epoch_seconds": trainer.epoch_seconds}
