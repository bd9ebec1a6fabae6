"""The table of a prepared split: a row per image. In and out: `table.csv`, columns as in `TABLE_COLUMNS`."""

from pathlib import Path

import pandas as pd

from pipeline.errors import InputError

TABLE_COLUMNS = {
    "image_id": str,
    "height": int,
    "width": int,
    "nuclei": int,
    "median_area_px": float,
    "image_type": str,
    "empty_masks": int,
    "overlap_px": int,
    "covered_masks": int,
    "dropped_specks": int,
    "fragments": int,
    "filled_holes": int,
}
_NUMBERS: dict[type, str] = {int: r"[0-9]{1,15}", float: r"[0-9]{1,15}(\.[0-9]{1,20})?"}
PROBLEM_COLUMNS = ("image_id", "mask_id", "problem", "value", "handling")


def read_table(folder: Path) -> pd.DataFrame:
    """Read the `table.csv` of a prepared split. Ids stay text, also where they look like numbers.

    Raises:
        InputError: the table is missing or damaged, an image is in it twice, or a number is none.
    """
    path = folder / "table.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes a value too many in every row for its name
            raise ValueError("more values than columns")
        table = table[list(TABLE_COLUMNS)]
        for column, kind in TABLE_COLUMNS.items():
            # Of a number like 1e999, pandas would make a whole one without a word.
            if kind is not str and not (good := table[column].str.fullmatch(_NUMBERS[kind])).all():
                raise ValueError(f"{column} is {table[column][~good].iloc[0][:40]!r}")
        table = table.astype(TABLE_COLUMNS)
        if table["image_id"].duplicated().any() or (table[["height", "width"]] < 1).any(axis=None):
            raise ValueError("an image twice, or of no size")
    except (OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a whole table of images ({why}); run the stage `prepare` again") from error
    return table
