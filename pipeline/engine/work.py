"""What is handed out: the stages that dvc.yaml has once for each number of a list, which need nothing of other numbers.

In: params.yaml. Out: the kinds of work in the order in which they need one another, each with its numbers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.launch import PER_FOLD, PER_SHARE
from pipeline.params import DataParams, FoldsParams


class Work(NamedTuple):
    """A kind of work.

    Attributes:
        name: of one, as dvc.yaml names its number: `${item.NAME}`.
        stages: in the order in which they need one another.
        inputs: what they read, beside params.yaml and the package's code.
    """

    name: str
    stages: tuple[str, ...]
    inputs: tuple[Path, ...]

    def targets(self, numbers: Sequence[int]) -> list[str]:
        """Return what DVC calls the stages of these numbers, in the order in which they need one another."""
        return [f"{stage}@{number}" for number in numbers for stage in self.stages]


FOLD = Work("fold", PER_FOLD, (Path("folds/folds.csv"), Path("data/prepared/train")))
SHARE = Work("share", PER_SHARE, (Path("data/prepared/test"), Path("folds/weights"), Path("folds/sizes")))


def list_work(folds: FoldsParams, data: DataParams) -> list[tuple[Work, Sequence[int]]]:
    """Return what is handed out, in order: the folds, then shares of the test set."""
    return [(FOLD, folds.ids), (SHARE, data.test_shares)]
