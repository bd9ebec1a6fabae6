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
PROBLEM_COLUMNS = ("image_id", "mask_id", "problem", "value", "handling")


def read_table(folder: Path) -> pd.DataFrame:
    """Read the `table.csv` of a prepared split. Ids stay text, also where they look like numbers.

    Raises:
        InputError: the table is missing or damaged.
    """
    path = folder / "table.csv"
    try:
        return pd.read_csv(path, dtype=TABLE_COLUMNS, keep_default_na=False)[list(TABLE_COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a whole table of images ({error}); run the stage `prepare` again") from error
