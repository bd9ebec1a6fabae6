"""Parameters composed from `pipeline/conf`, as `dvc exp run -S` composes them into params.yaml."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.utils.hydra import compose_and_dump
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import InputError, shorten
from pipeline.params import Params, load_params

CONF = Path(__file__).parent / "conf"


def write_composed(path: Path, overrides: Sequence[str] = ()) -> None:
    """Write the params.yaml that the defaults and `overrides`, in the form of `dvc exp run -S`, compose.

    Raises:
        InputError: an override names no group, choice or key.
    """
    try:
        compose_and_dump(path, str(CONF), None, "config", [], list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra ends with where it looked, or with a page on its grammar.
        reason = re.split(r"\n(?:Config search path|See https)", str(error))[0]
        raise InputError(f"{' '.join(overrides)}: {shorten(reason, 300)}") from error


def compose_params(overrides: Sequence[str] = ()) -> Params:
    """Return the parameters that the defaults and `overrides` compose.

    Raises:
        InputError: an override names no group, choice or key, or a value is out of bounds.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        write_composed(path, overrides)
        return load_params(path)
