"""What commands share: where the current run keeps its files, and what a command's parser is added to.

A module of this room adds its parsers by `add_commands`, each with the function `call`. That imports what it needs when
it is called, so that `--help` answers at once.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

FOLDS, SUBMISSIONS, PARAMS = Path("folds"), Path("submissions"), Path("params.yaml")
JOURNAL = Path(".resume/journal")  # where the stages of dvc.yaml note their seconds
STORAGE = Path(".resume/cluster")  # for what machines of a cluster share, where all of them see this checkout
TRAIN, TEST, BATCH = Path("data/prepared/train"), Path("data/prepared/test"), Path("data/batch.png")


def read_jobs(text: str) -> int | None:
    """Return a number of jobs; None for `auto`."""
    return None if text == "auto" else read_count(text)


def read_count(text: str) -> int:
    """Return a number of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def read_share(text: str) -> Callable[[int], Sequence[int]]:
    """Return what a share is of so many shards: `K/N`, every Nth from the Kth on, or their numbers, `3,5,9`."""
    number, slash, of = text.partition("/")
    if slash and number.isdecimal() and of.isdecimal() and int(number) < int(of):
        return lambda shards: range(int(number), shards, int(of))
    numbers = text.split(",")
    if not slash and all(part.isdecimal() for part in numbers):
        return lambda shards: [int(part) for part in numbers if int(part) < shards]
    raise argparse.ArgumentTypeError(f"{text!r} is no share; give K/N, 0/4 to 3/4 say")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where jobs run."""
    parser.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="where jobs run: processes of this machine, the default, or tasks of a Ray cluster",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of the Ray cluster; by default that which this machine belongs to"
    )


def check_engine(arguments: argparse.Namespace) -> bool:
    """Return whether jobs are tasks of Ray.

    Raises:
        InputError: they are not, but an address is given.
    """
    from pipeline.errors import InputError

    if arguments.address and arguments.engine != "ray":
        raise InputError("--address is of a Ray cluster; add --engine ray, or leave it out")
    return bool(arguments.engine == "ray")
