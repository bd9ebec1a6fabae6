"""The commands for people: `python -m pipeline COMMAND`. Thin: arguments to calls, and an `InputError` to one line."""

import argparse
import io
import sys
from collections.abc import Sequence

from pipeline.commands import blending, data, network, prediction, running, runs, submissions
from pipeline.errors import one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: the command line) name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text in the stream's encoding
    parsed = make_parser().parse_args(arguments)
    with one_line_errors():
        try:
            parsed.call(parsed)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of a pipe, `head` say, has gone


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Nuclei of the 2018 Data Science Bowl: what people do around `dvc repro`.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (data, running, runs, blending, submissions, prediction, network):
        group.add_commands(commands)
    return parser
