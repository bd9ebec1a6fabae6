"""prepare: the archives of `data` to packed splits, with a table of every image and of every problem."""

from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.files import atomic_folder
from pipeline.images.checksums import verify_checksums
from pipeline.images.prepare import prepare_split
from pipeline.params import Params


def main(archives: Path, train_out: Path, test_out: Path, params: Params) -> None:
    """Read the sources and the test set of `data` in the folder `archives` into two prepared splits."""
    if not archives.is_dir():
        raise InputError(
            f"{archives}: no such folder; `python -m pipeline fetch SOURCE --to {archives}` makes it, or set data.dir "
            "to the folder of your archives"
        )
    verify_checksums(archives)
    data, test = params.data, {"test": params.data.test} if params.data.test else {}
    with atomic_folder(train_out) as train_folder, atomic_folder(test_out) as test_folder:
        describe("train", prepare_split(data.sources, archives, train_folder, True, data, params.housekeeping))
        describe("test", prepare_split(test, archives, test_folder, False, data, params.housekeeping))


def describe(split: str, table: pd.DataFrame) -> None:
    """Print what was found in a split: images by type, nuclei, and every kind of problem with its count."""
    types = ", ".join(f"{count} {name}" for name, count in table["image_type"].value_counts().items())
    print(f"{split}: {len(table)} images ({types or 'none'}), {table['nuclei'].sum()} nuclei")
    faults = table.loc[:, "empty_masks":].sum()
    print("  " + ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in faults.items()))
