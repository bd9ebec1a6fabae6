"""The fold table: which held-out fold each training image belongs to.

In: the table of the prepared images, and the group of each. Out: a table image_id, group, stratum, fold in which no
group is split and image types, nucleus counts and nuclei are spread evenly; and the images inside and outside a fold.

An image of a source that is not scored has no fold, and every network learns from it; but where it is of one group with
scored images it has theirs, whose network so does not learn from it.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.images.splits import PreparedSplit
from pipeline.params import FoldsParams
from pipeline.tables import read_csv_table

COLUMNS = {"image_id": str, "group": str, "stratum": str, "fold": int}
NO_FOLD = -1  # an empty field in the file
UNSCORED = "unscored"  # the stratum of images that are not scored


def name_groups(groups: pd.Series, scored: Iterable[str]) -> pd.Series:
    """Return each image's group under the name of its smallest scored image, or its own where it has none.

    So the folds of scored images, which follow from the names of their groups too, are the same with and without
    images that are not scored, wherever those tie no two groups together.

    Args:
        groups: each image's group, indexed by image_id.
        scored: the images that are scored.
    """
    own = groups[groups.index.isin(list(scored))]
    first = pd.Series(own.index, index=own.index).groupby(own).min()
    return groups.map(first).fillna(groups).rename(groups.name)


def assign_folds(table: pd.DataFrame, groups: pd.Series, params: FoldsParams) -> pd.DataFrame:
    """Spread the images over `params.ids`, every group whole: the best balanced of several seeded tries.

    Args:
        table: a row per image, with image_id, image_type and nuclei (a count).
        groups: each image's group, indexed by image_id.

    Returns:
        image_id, group, stratum, fold; sorted by image_id. The same for the same input and `params.seed`.

    Raises:
        InputError: an image has no group, or there are more folds than groups.
    """
    table = table.sort_values("image_id", ignore_index=True)
    if not (known := table["image_id"].isin(groups.index)).all():
        raise InputError(f"image {table['image_id'][~known].iloc[0]!r} has no group; give every image of the table one")
    folds = pd.DataFrame({"image_id": table["image_id"], "group": groups.loc[table["image_id"]].to_numpy()})
    folds["stratum"] = find_strata(table, params)
    if (count := folds["group"].nunique()) < len(params.ids):
        raise InputError(
            f"{len(params.ids)} folds for {count} group(s) of images; shorten folds.ids to at most {count} ids, "
            "or add images"
        )
    tries = [folds.assign(fold=fold) for fold in _split(folds, params)]
    return min(tries, key=lambda candidate: measure_imbalance(candidate, table))


def assign_blocks(table: pd.DataFrame, params: FoldsParams) -> pd.DataFrame:
    """Give every fold a block of neighbouring slices, as equal as can be: slices beside one another look alike.

    Args:
        table: a row per slice, with image_id; ids sort in the order of the stack.
        params: `ids`.

    Returns:
        image_id, group (the block), stratum, fold; sorted by image_id.

    Raises:
        InputError: there are more folds than slices.
    """
    image_ids = table["image_id"].sort_values(ignore_index=True)
    if len(image_ids) < len(params.ids):
        raise InputError(f"{len(params.ids)} folds for {len(image_ids)} slice(s); shorten folds.ids, or add slices")
    fold = np.arange(len(image_ids)) * len(params.ids) // len(image_ids)
    blocks = [f"block{number}" for number in fold]
    return pd.DataFrame({"image_id": image_ids, "group": blocks, "stratum": "slice", "fold": fold})


def add_unscored(folds: pd.DataFrame, table: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """Return the fold table of scored images with those of `table` that are not scored in it too, sorted by image_id.

    Args:
        folds: as `assign_folds` returns it, of the scored images.
        table: a row per image, with image_id and scored (1 or 0).
        groups: each image's group, indexed by image_id.
    """
    image_ids = table.loc[table["scored"] == 0, "image_id"]
    if image_ids.empty:
        return folds
    own = groups.loc[image_ids].to_numpy()
    fold_of = folds.groupby("group")["fold"].first()
    places = pd.Series(own).map(fold_of).fillna(NO_FOLD).to_numpy(int)
    extra = pd.DataFrame({"image_id": image_ids.to_numpy(), "group": own, "stratum": UNSCORED, "fold": places})
    return pd.concat([folds, extra], ignore_index=True).sort_values("image_id", ignore_index=True)


def find_strata(table: pd.DataFrame, params: FoldsParams) -> pd.Series:
    """Return each image's stratum: its type, and among equal types the quantile bin of its nucleus count.

    A type gets fewer bins than asked for where a bin would hold fewer images than there are folds.
    """
    strata = pd.Series("", index=table.index, dtype=object)
    for image_type, rows in table.groupby("image_type", sort=True):
        bins = max(1, min(params.nuclei_bins, len(rows) // len(params.ids)))
        number = np.searchsorted(np.quantile(rows["nuclei"], np.arange(1, bins) / bins), rows["nuclei"], side="right")
        strata[rows.index] = [f"{image_type}/{n}" for n in number]
    return strata


def measure_imbalance(folds: pd.DataFrame, table: pd.DataFrame) -> float:
    """Return how unevenly the folds share images, nuclei and every type and stratum; 0 is even.

    It is the root mean square, over folds and those quantities, of a fold's share relative to an even share, minus 1.
    Every fold must have images.
    """
    merged = folds.merge(table[["image_id", "image_type", "nuclei"]], on="image_id")
    parts = [pd.get_dummies(merged[column], dtype=float) for column in ("image_type", "stratum")]
    amounts = pd.concat([pd.Series(1.0, index=merged.index), merged["nuclei"].astype(float), *parts], axis=1)
    totals = amounts.groupby(merged["fold"]).sum().to_numpy()
    totals = totals[:, totals.sum(axis=0) > 0]
    return float(np.sqrt(np.mean((totals / totals.mean(axis=0) - 1) ** 2)))


def describe_balance(folds: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per fold: fold, images, groups, nuclei, and the number of images of every type."""
    merged = folds.merge(table[["image_id", "image_type", "nuclei"]], on="image_id")
    by_fold = merged.groupby("fold")
    counts = by_fold.agg(images=("image_id", "size"), groups=("group", "nunique"), nuclei=("nuclei", "sum"))
    return counts.join(pd.crosstab(merged["fold"], merged["image_type"])).reset_index()


def check_folds(
    folds: pd.DataFrame,
    image_ids: Iterable[str],
    groups: pd.Series | None,
    ids: Sequence[int],
    unscored: Iterable[str] = (),
) -> None:
    """Refuse a fold table that leaks or does not fit the images.

    Args:
        folds: as `assign_folds` returns it.
        image_ids: the images that must be in it, each once, and no others.
        groups: each image's group, indexed by image_id, to hold the table against; None trusts the table's own groups.
        ids: the folds there are.
        unscored: those of the images that are not scored, and may have no fold.

    Raises:
        InputError: an image is missing, unknown, there twice or without group; a fold is unknown or has no image to
            score; a scored image has no fold; a group is split.
    """
    cure = "run the stage `folds` again"
    listed, wanted = folds["image_id"], pd.Index(image_ids)
    if listed.duplicated().any():
        raise InputError(f"image {listed[listed.duplicated()].iloc[0]!r} is in the fold table twice; {cure}")
    if len(unknown := pd.Index(listed).difference(wanted)):
        raise InputError(f"image {unknown[0]!r} of the fold table is not among the prepared images; {cure}")
    if len(missing := wanted.difference(pd.Index(listed))):
        raise InputError(f"image {missing[0]!r} is missing from the fold table; {cure}")
    is_scored = ~listed.isin(list(unscored))
    if not (known := folds["fold"].isin(ids) | ((folds["fold"] == NO_FOLD) & ~is_scored)).all():
        row = folds[~known].iloc[0]
        place = "no fold" if row["fold"] == NO_FOLD else f"fold {row['fold']}"
        raise InputError(f"image {row['image_id']!r} is in {place}, but folds.ids is {list(ids)}; {cure}")
    if empty := sorted(set(ids) - set(folds["fold"][is_scored])):
        raise InputError(f"fold {empty[0]} of folds.ids has no image; {cure}, or shorten folds.ids")
    if groups is not None and not (known := listed.isin(groups.index)).all():
        raise InputError(f"image {listed[~known].iloc[0]!r} of the fold table has no group; {cure}")
    for group in [folds["group"]] if groups is None else [folds["group"], listed.map(groups)]:
        spread = folds["fold"].groupby(group).unique()
        if len(split := spread[spread.map(len) > 1]):
            raise InputError(
                f"group {split.index[0]!r} is split across folds {sorted(map(int, split.iloc[0]))}: "
                f"held-out scores would flatter; {cure}"
            )


def read_folds(path: Path) -> pd.DataFrame:
    """Read the fold table: image_id, group, stratum (strings), fold (an integer, `NO_FOLD` where the field is empty).

    Raises:
        InputError: the file is missing or no CSV, lacks a column, has a fold that is no whole number, or a value that
            is absurdly long.
    """
    cure = "run the stage `folds` again"
    table = read_csv_table(path, COLUMNS | {"fold": str}, cure, "fold table")
    if not (good := table["fold"].str.fullmatch("[0-9]{0,9}")).all():
        row = table[~good].iloc[0]
        raise InputError(
            f"{path}: image {row['image_id'][:200]!r} has fold {row['fold'][:40]!r}, not a whole number; {cure}"
        )
    return table.assign(fold=table["fold"].replace("", str(NO_FOLD)).astype(int))


def format_folds(folds: pd.DataFrame) -> str:
    """Return the fold table as `read_folds` reads it."""
    places = folds["fold"].astype(str).replace(str(NO_FOLD), "")
    return folds.assign(fold=places).to_csv(index=False, lineterminator="\n")


class FoldedSplit(NamedTuple):
    """The training images and their folds.

    Attributes:
        everything: all images, those that are not scored too.
        table: the checked fold table of all of them, sorted by image_id.
        ids: the folds there are.
    """

    everything: PreparedSplit
    table: pd.DataFrame
    ids: tuple[int, ...]

    @property
    def split(self) -> PreparedSplit:
        """The images that are scored."""
        images = self.everything.table
        return self.everything.select(images.loc[images["scored"] == 1, "image_id"])

    @property
    def folds(self) -> pd.DataFrame:
        """The fold table of the images that are scored, sorted by image_id."""
        return self.table[self.table["image_id"].isin(self.split.image_ids)].reset_index(drop=True)

    def inside(self, fold: int) -> PreparedSplit:
        """Return the images of a fold that are scored; its network never sees them."""
        return self.split.select(self.folds.loc[self.folds["fold"] == fold, "image_id"])

    def outside(self, fold: int) -> PreparedSplit:
        """Return the images that the network of a fold learns from, those that are not scored too."""
        return self.everything.select(self.table.loc[self.table["fold"] != fold, "image_id"])

    @property
    def images(self) -> pd.DataFrame:
        """A row per scored image, sorted by image_id: the columns of the fold table and of the split's."""
        return self.folds.merge(self.split.table, on="image_id", how="left")


def open_folded(prepared: Path, folds: Path, ids: Sequence[int]) -> FoldedSplit:
    """Open the prepared training images with their fold table, checked against them.

    Raises:
        InputError: a file is missing or damaged, or the table leaks or does not fit the images or `ids`.
    """
    split, table = PreparedSplit.open(prepared), read_folds(folds)
    check_folds(table, split.image_ids, None, ids, split.table.loc[split.table["scored"] == 0, "image_id"])
    return FoldedSplit(split, table.sort_values("image_id", ignore_index=True), tuple(ids))


def _split(folds: pd.DataFrame, params: FoldsParams) -> Iterator[np.ndarray]:
    """Yield the fold of every image, by seeds, and by strata of images, of groups (their majority's), and none at all.

    The splitter is greedy, so seeds differ. It needs a stratum with an image for every fold; without strata it always
    fills all folds, which is what a handful of images needs.
    """
    # Half a second, which those who only read the table are spared.
    from sklearn.model_selection import StratifiedGroupKFold

    groups = folds["group"]
    majority = groups.map(folds.groupby("group")["stratum"].agg(lambda strata: strata.mode().iloc[0]))
    for strata in (folds["stratum"], majority, pd.Series("", index=folds.index)):
        if strata.value_counts().iloc[0] < len(params.ids):
            continue
        for seed in range(params.seed, params.seed + params.tries):
            splitter = StratifiedGroupKFold(len(params.ids), shuffle=True, random_state=seed)
            fold = np.full(len(folds), -1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # rare strata cannot reach every fold, as is known
                for number, (_, held_out) in zip(params.ids, splitter.split(folds, strata, groups), strict=True):
                    fold[held_out] = number
            if len(np.unique(fold)) == len(params.ids):
                yield fold
