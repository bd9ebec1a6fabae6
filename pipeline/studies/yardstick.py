"""The yardstick for what training lacks: the data, parameters and arguments that its two commands share.

Each cluster of results/acquisitions.csv is left out of a training in turn (`left_out.py`), and then found and scored
(`scoring.py`). `pipeline.studies.unseen` compares settings by it; `pipeline.studies.expected` writes what runs learn
the score to expect from: the same images, and probes made of them (`probes.py`).
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from pipeline.folds.table import FoldedSplit
from pipeline.params import Params
from pipeline.studies.acquisitions import read_acquisitions
from pipeline.studies.study import compose, load_data, make_parser

# `short` is what pipeline/conf/study/unseen.yaml says, `full` a training as a run's, of 24 epochs in place of 30.
LENGTHS = {
    "short": (),
    "full": (
        "train.epochs=24", "train.steps_per_epoch=50", "train.tile_px=176", "train.crop_px=128",
        "train.ema_decay=0.995",
    ),
}  # fmt: skip


class Yardstick(NamedTuple):
    """What a call measures with: images with their folds, and the table of acquisitions."""

    folded: FoldedSplit
    acquisitions: pd.DataFrame


def make_yardstick_parser(description: str, length: str) -> argparse.ArgumentParser:
    """Return a parser of what both commands take; `length` is that of a training unless another is asked for."""
    parser = make_parser(description)
    parser.add_argument("--clusters", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--length", choices=LENGTHS, default=length, help="of a training; default: %(default)s")
    parser.add_argument("--as-is", action="store_true", help="measure nothing: judge the rows that are there")
    return parser


def compose_yardstick(arguments: argparse.Namespace, changes: Sequence[str] = ()) -> Params:
    """Return the full run's parameters with the schedule of `--length`, and changes as `dvc exp run -S` takes them."""
    return compose("unseen", [*LENGTHS[arguments.length], f"runtime.threads={arguments.threads}", *changes])


def open_yardstick(arguments: argparse.Namespace, params: Params) -> Yardstick:
    """Prepare the archives, unless that was done.

    Raises:
        InputError: there is no training archive, or it is damaged; there is no table of acquisitions.
    """
    return Yardstick(load_data(arguments.data, arguments.scratch, params), read_acquisitions())
