"""folds: the prepared training images to a fold table that splits no mosaic, and its balance."""

from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.images.folds import assign_blocks, assign_folds, check_folds, describe_balance
from pipeline.images.mosaics import group_images
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.params import Params
from pipeline.progress import track
from pipeline.stages.run import run


def main(prepared: Path, out: Path, params: Params) -> None:
    """Group the images in the folder `prepared`, and write folds.csv and balance.csv to the folder `out`."""
    table = read_table(prepared)
    if table.empty:
        raise InputError(f"{prepared / 'table.csv'}: lists no image; give `prepare` a training archive with images")
    if params.folds.groups == "blocks":
        folds = assign_blocks(table, params.folds)
        groups = folds.set_index("image_id")["group"]
    else:
        groups = group_found(prepared, table)
        folds = assign_folds(table, groups, params.folds)
    check_folds(folds, table["image_id"], groups, params.folds.ids)
    balance = describe_balance(folds, table)
    write_text(out / "folds.csv", folds.to_csv(index=False, lineterminator="\n"))
    write_text(out / "balance.csv", balance.to_csv(index=False, lineterminator="\n"))
    sizes = groups.value_counts()
    print(f"{len(groups)} images in {len(sizes)} groups; {(sizes == 4).sum()} groups of four, largest {sizes.max()}")
    print(balance.to_string(index=False))


def group_found(prepared: Path, table: pd.DataFrame) -> pd.Series:
    """Return each image's group, indexed by image_id, from the borders and the likeness of the images."""
    pack = Pack(prepared / "images.npz")
    if absent := [image_id for image_id in table["image_id"] if f"{image_id}.image" not in pack]:
        raise InputError(f"{pack.path}: image {absent[0]!r} of table.csv is missing; run the stage `prepare` again")
    image_ids = track(table["image_id"], "group images", total=len(table))
    return group_images((image_id, pack[f"{image_id}.image"]) for image_id in image_ids)


if __name__ == "__main__":
    run(main)
