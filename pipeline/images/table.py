"""The table of a prepared split: a row per image. In and out: `table.csv`, columns as in `TABLE_COLUMNS`."""

from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.tables import read_csv_table

TABLE_COLUMNS = {
    "image_id": str,
    "source": str,  # the name in data.sources
    "scored": int,  # 1 where the image is held out in turn, 0 where it is only learnt from, and in a test set
    "weight": float,  # how often it is drawn, against an image of weight 1; 0 in a test set
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

# What writes a prepared split again.
CURE = "run the stage `prepare` again"


def read_table(folder: Path) -> pd.DataFrame:
    """Read the `table.csv` of a prepared split. Ids stay text, also where they look like numbers.

    Raises:
        InputError: the table is missing or damaged, an image is in it twice or of no size, or a number is none.
    """
    path = folder / "table.csv"
    table = read_csv_table(path, TABLE_COLUMNS, CURE, "table of images")
    faulty = table["image_id"].duplicated() | (table["height"] < 1) | (table["width"] < 1)
    if faulty.any():
        raise InputError(f"{path}: image {table['image_id'][faulty].iloc[0]!r} is in it twice, or of no size; {CURE}")
    return table


def name_acquisitions(images: pd.DataFrame) -> pd.Series:
    """Return what each image's acquisition is called, such as `fluorescence 256x320`: its type and frame size."""
    return images["image_type"] + " " + images["height"].astype(str) + "x" + images["width"].astype(str)
