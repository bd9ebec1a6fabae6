"""The kaggle command line client, called as a program of its own.

In: its arguments. Out: what it prints. The client brings its own credentials; this package never reads them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.errors import InputError, shorten

# The competition that this pipeline is for, as kaggle.com spells it.
COMPETITION = "data-science-bowl-2018"

_INSTALL = "install the client (`pip install -c constraints.txt -e '.[kaggle]'`)"
_TOKEN = (
    "make a new API token at https://www.kaggle.com/settings and put it where that page says (~/.kaggle/kaggle.json)"
)
# What the client or the server behind it says, and the cure; the first that fits counts.
_CURES = (
    (
        r"\b403\b|Forbidden|accept this competition",
        f"accept the rules at https://www.kaggle.com/competitions/{COMPETITION}/rules, with the account of the token",
    ),
    (r"\b401\b|Unauthori[sz]ed|authenticate|Could not find kaggle\.json|Missing username", _TOKEN),
    (r"\b404\b|Not Found", "update the client (`pip install -U kaggle`)"),
    (r"\b429\b|\b50[0-4]\b|Too Many Requests", "kaggle is busy: run the same command again later"),
    (r"CERTIFICATE_VERIFY_FAILED", "behind a proxy set REQUESTS_CA_BUNDLE to a file that has the proxy's certificate"),
    (
        r"Max retries|Connection|[Tt]imed? ?out|resolve",
        "check the connection, and run the same command again, which goes on with what is there",
    ),
)


def run_kaggle(*arguments: str, progress: bool = False) -> str:
    """Run `kaggle` with these arguments and return what it prints to stdout.

    Args:
        arguments: passed as they are; no shell reads them.
        progress: let the client's own bar through to stderr.

    Raises:
        InputError: there is no client, or it fails: without credentials, connection or the rules accepted. Its own
            words are passed on with the cure for them.
    """
    # An environment that is used without being activated has its programs beside its python, not on PATH.
    folders = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    client = shutil.which("kaggle", path=folders)
    if client is None:
        raise InputError(f"kaggle: no such program on PATH; {_INSTALL}, and {_TOKEN}")
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
        raise InputError(f"kaggle {' '.join(arguments[:2])}: {_explain(done.stdout + (done.stderr or ''))}")
    return done.stdout


def _explain(output: str) -> str:
    """Return the line of the client's output that says why it failed, with the cure for it."""
    lines = output.strip().splitlines() or ["it fails, and says above why"]
    for pattern, cure in _CURES:
        for line in lines:
            if re.search(pattern, line):
                return f"{shorten(line)}; {cure}"
    return f"{shorten(lines[-1])}; mend that, or update the client (`pip install -U kaggle`)"
