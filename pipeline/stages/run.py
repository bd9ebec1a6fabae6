"""How a stage is started: `python -m pipeline.stages.NAME --ARGUMENT VALUE ...`, an argument per parameter of its main.

The values come from dvc.yaml's `cmd`, so no stage spells a path.
"""

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.params import Params, load_params

_WHOLE, _PER_FOLD = ("prepare", "folds", "evaluate", "predict_test"), ("train", "size", "predict_oof")


def run(main: Callable[..., float | None]) -> None:
    """Parse the command line into the parameters of `main` (paths, integers, `params`) and call it.

    With `--journal FOLDER` the seconds that the stage took, or that `main` says it took, are kept there. An
    `InputError` ends in one line on stderr and exit status 1.
    """
    arguments = inspect.signature(main, eval_str=True).parameters.values()
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    for argument in arguments:
        kind = Path if argument.annotation is Params else argument.annotation
        parser.add_argument(f"--{argument.name.replace('_', '-')}", type=kind, required=True)
    if "journal" not in {argument.name for argument in arguments}:
        parser.add_argument("--journal", type=Path, help="a folder in which to note the seconds that this took")
    values = vars(parser.parse_args())
    journal = values["journal"] if "journal" in inspect.signature(main).parameters else values.pop("journal")
    begin = time.monotonic()
    try:
        if "params" in values:
            values["params"] = load_params(values["params"])
        seconds = main(**values)
    except (InputError, OSError, BrokenProcessPool) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as shells count it
    if journal:
        write_text(journal / _journal_name(main, values), f"{seconds or time.monotonic() - begin:.1f}\n")


def _journal_name(main: Callable[..., float | None], values: dict[str, Any]) -> str:
    stage = Path(inspect.getfile(main)).stem
    return f"{stage}.{values['fold']}" if "fold" in values else stage


def read_seconds(journal: Path, folds: Iterable[int]) -> float | None:
    """Return the seconds that the stages up to `predict_test` took when they last ran; None where nothing was noted.

    Entries of folds other than `folds` are what an earlier run with more folds left behind.
    """
    names = [*_WHOLE, *(f"{stage}.{fold}" for stage in _PER_FOLD for fold in folds)]
    entries = [path for path in map(journal.joinpath, names) if path.is_file()]
    return round(sum(float(path.read_text()) for path in entries), 1) if entries else None
