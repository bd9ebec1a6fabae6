"""folds: the prepared training images to a fold table that splits no mosaic, and its balance."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.folds.groups import group_images
from pipeline.folds.table import assign_blocks, assign_folds, check_folds, describe_balance
from pipeline.images.splits import PreparedSplit
from pipeline.launch import run
from pipeline.params import Params
from pipeline.progress import track


def main(prepared: Path, out: Path, params: Params) -> None:
    """Group the images in the folder `prepared`, and write folds.csv and balance.csv to the folder `out`."""
    split = PreparedSplit.open(prepared)
    if not len(split):
        raise InputError(f"{prepared / 'table.csv'}: lists no image; give `prepare` a training archive with images")
    if params.folds.groups == "blocks":
        folds = assign_blocks(split.table, params.folds)
        groups = folds.set_index("image_id")["group"]
    else:
        groups = group_images(track(split.images(), "group images", total=len(split)))
        folds = assign_folds(split.table, groups, params.folds)
    check_folds(folds, split.image_ids, groups, params.folds.ids)
    balance = describe_balance(folds, split.table)
    write_text(out / "folds.csv", folds.to_csv(index=False, lineterminator="\n"))
    write_text(out / "balance.csv", balance.to_csv(index=False, lineterminator="\n"))
    sizes = groups.value_counts()
    print(f"{len(groups)} images in {len(sizes)} groups; {(sizes == 4).sum()} groups of four, largest {sizes.max()}")
    print(balance.to_string(index=False))


if __name__ == "__main__":
    run(main)
