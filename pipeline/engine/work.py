"""What is handed out: the stages that dvc.yaml has once for each member and fold, or share, which need no other's.

In: params.yaml. Out: the kinds of work in the order in which they need one another, each with its items.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.launch import PER_FOLD, PER_SHARE
from pipeline.params import DataParams, FoldsParams


class Work(NamedTuple):
    """A kind of work.

    Attributes:
        name: of one, as dvc.yaml names its number: `${item.NAME}`; its member is `${item.member}`.
        stages: in the order in which they need one another.
        inputs: what they read, beside params.yaml and the package's code.
        items: the member and the number of each, by what DVC calls it: `main-0`.
    """

    name: str
    stages: tuple[str, ...]
    inputs: tuple[Path, ...]
    items: Mapping[str, tuple[str, int]]

    def find(self, text: str) -> str:
        """Return the item that is called so, or whose place in the list, counted from 0, is this.

        Raises:
            InputError: there is none.
        """
        names = list(self.items)
        if text.isdecimal() and int(text) < len(names):
            return names[int(text)]
        if text not in names:
            raise InputError(f"--{self.name} {text}: none is called so; give one of {', '.join(names)}, or its place")
        return text

    def targets(self, items: Iterable[str]) -> list[str]:
        """Return what DVC calls the stages of these items, in the order in which they need one another."""
        return [f"{stage}@{item}" for item in items for stage in self.stages]


def list_work(members: Sequence[str], folds: FoldsParams, data: DataParams) -> tuple[Work, Work]:
    """Return what is handed out, in order: the folds of each member, then each member's shares of the test set."""
    trained = Path("folds/folds.csv"), Path("data/prepared/train")
    used = Path("data/prepared/test"), Path("folds/weights"), Path("folds/sizes")
    return (
        Work("fold", PER_FOLD, trained, _pair(members, folds.ids)),
        Work("share", PER_SHARE, used, _pair(members, data.test_shares)),
    )


def _pair(members: Sequence[str], numbers: Sequence[int]) -> dict[str, tuple[str, int]]:
    return {f"{member}-{number}": (member, number) for member in members for number in numbers}
