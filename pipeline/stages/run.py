"""How a stage is started: `python -m pipeline.stages.NAME --ARGUMENT VALUE ...`, one argument per parameter of its main.

The values come from dvc.yaml's `cmd`, so no stage spells a path.
"""

import argparse
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import InputError
from pipeline.params import Params, load_params


def run(main: Callable[..., None]) -> None:
    """Parse the command line into the parameters of `main` (paths, integers, `params`) and call it.

    An `InputError` ends in one line on stderr and exit status 1.
    """
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    arguments = inspect.signature(main, eval_str=True).parameters.values()
    for argument in arguments:
        kind = Path if argument.annotation is Params else argument.annotation
        parser.add_argument(f"--{argument.name.replace('_', '-')}", type=kind, required=True)
    values = vars(parser.parse_args())
    try:
        if "params" in values:
            values["params"] = load_params(values["params"])
        main(**values)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as shells count it
