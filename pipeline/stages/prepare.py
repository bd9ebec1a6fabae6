"""prepare: the competition's zips to packed splits, with a table of every image and of every problem."""

from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.files import atomic_folder
from pipeline.images.fetch import verify_checksums
from pipeline.images.prepare import prepare_archive
from pipeline.params import Params
from pipeline.stages.run import run


def main(archives: Path, train_out: Path, test_out: Path, params: Params) -> None:
    """Read the archives of `data` in the folder `archives` into two prepared splits."""
    if not archives.is_dir():
        cure = f"`python -m pipeline fetch SOURCE --to {archives}` makes it"
        if params.data.layout == "stack":
            cure = "set data.dir to the folder of the stack"
        raise InputError(f"{archives}: no such folder; {cure}")
    verify_checksums(archives)
    test = None if params.data.test == "none" else archives / params.data.test
    with atomic_folder(train_out) as train_folder, atomic_folder(test_out) as test_folder:
        describe("train", prepare_archive(archives / params.data.train, train_folder, True, params.data))
        describe("test", prepare_archive(test, test_folder, False, params.data))


def describe(split: str, table: pd.DataFrame) -> None:
    """Print what was found in a split: images by type, nuclei, and every kind of problem with its count."""
    types = ", ".join(f"{count} {name}" for name, count in table["image_type"].value_counts().items())
    print(f"{split}: {len(table)} images ({types or 'none'}), {table['nuclei'].sum()} nuclei")
    faults = table.loc[:, "empty_masks":].sum()
    print("  " + ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in faults.items()))


if __name__ == "__main__":
    run(main)
