"""folds: the prepared training images to a fold table that splits no mosaic, and its balance."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.folds.groups import group_images
from pipeline.folds.table import (
    NO_FOLD,
    add_unscored,
    assign_blocks,
    assign_folds,
    check_folds,
    describe_balance,
    format_folds,
    name_groups,
)
from pipeline.images.splits import PreparedSplit
from pipeline.params import Params
from pipeline.progress import track


def main(prepared: Path, out: Path, params: Params) -> None:
    """Group the images in the folder `prepared`, and write folds.csv and balance.csv to the folder `out`."""
    split = PreparedSplit.open(prepared)
    if not len(split):
        raise InputError(f"{prepared / 'table.csv'}: lists no image; give `prepare` a training archive with images")
    is_scored = split.table["scored"] == 1
    scored, unscored = split.table[is_scored], split.table[~is_scored]
    if scored.empty:
        raise InputError(
            f"{prepared / 'table.csv'}: no image of it is scored; set `scored` of a source in data.sources"
        )
    if params.folds.groups == "blocks":
        if len(unscored):
            raise InputError(
                f"params.yaml: folds.groups is blocks, which looks for no likeness, but the source "
                f"{unscored['source'].iloc[0]} is not scored and may show what is held out; set folds.groups to found, "
                "or leave that source out"
            )
        folds = assign_blocks(scored, params.folds)
        groups = folds.set_index("image_id")["group"]
    else:
        groups = group_images(track(split.images(), "group images", total=len(split)))
        groups = name_groups(groups, scored["image_id"])
        folds = assign_folds(scored, groups, params.folds)
    balance = describe_balance(folds, scored)
    folds = add_unscored(folds, split.table, groups)
    check_folds(folds, split.image_ids, groups, params.folds.ids, unscored["image_id"])
    write_text(out / "folds.csv", format_folds(folds))
    write_text(out / "balance.csv", balance.to_csv(index=False, lineterminator="\n"))
    sizes = groups.value_counts()
    print(f"{len(groups)} images in {len(sizes)} groups; {(sizes == 4).sum()} groups of four, largest {sizes.max()}")
    print(balance.to_string(index=False))
    if len(unscored):
        tied = int((folds["fold"][folds["image_id"].isin(unscored["image_id"])] != NO_FOLD).sum())
        print(f"{len(unscored)} more images are learnt from and not scored; {tied} of them in every fold but one")
