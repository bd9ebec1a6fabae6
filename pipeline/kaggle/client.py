"""The kaggle command line client, called as a program of its own.

In: its arguments. Out: what it prints. The client brings its own credentials; this package never reads them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.errors import InputError

# The competition that this pipeline is for, as kaggle.com spells it.
COMPETITION = "data-science-bowl-2018"

_CURE = (
    "install the client (`pip install -c constraints.txt -e '.[kaggle]'`), put the API token of kaggle.com/settings at "
    "~/.kaggle/kaggle.json, and accept the rules on the competition's page"
)


def run_kaggle(*arguments: str, progress: bool = False) -> str:
    """Run `kaggle` with these arguments and return what it prints to stdout.

    Args:
        arguments: passed as they are; no shell reads them.
        progress: let the client's own bar through to stderr.

    Raises:
        InputError: there is no client, or it fails: without credentials, connection or the rules accepted.
    """
    # An environment that is used without being activated has its programs beside its python, not on PATH.
    folders = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    client = shutil.which("kaggle", path=folders)
    if client is None:
        raise InputError(f"kaggle: no such program on PATH; {_CURE}")
    done = subprocess.run(
        [client, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if progress else subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        lines = (done.stdout + (done.stderr or "")).strip().splitlines() or ["it says nothing"]
        raise InputError(f"kaggle {' '.join(arguments[:2])}: {lines[-1].strip()}; {_CURE}")
    return done.stdout
