"""CSV files to tables whose every value was looked at, and tables to CSV files.

In: a CSV, and the columns that it must have. Out: a table of those columns alone, text as text and numbers as numbers.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError, shorten
from pipeline.files import write_text

_LONGEST_VALUE = 512  # characters, as of a name in an archive
# No sign, and no more digits than their type holds: of a number like 1e999, pandas would make another without a word.
_NUMBERS: dict[type, tuple[str, str]] = {
    int: ("[0-9]{1,15}", "a whole number"),
    float: (r"[0-9]{1,15}(\.[0-9]{1,20})?(e-[0-9]{1,2})?", "a number"),
}


def read_csv_table(
    path: Path,
    columns: Mapping[str, type],
    cure: str,
    what: str,
    text: str | None = None,
    optional: Mapping[str, type] | None = None,
) -> pd.DataFrame:
    """Read the columns of a CSV, in the order of `columns`; others are passed over.

    Text stays text, also where it looks like a number or says "NA".

    Args:
        path: of the file.
        columns: the type of each: str, int or float, numbers not below 0. The first one names the rows in messages.
        cure: how to get a good file, which ends every message.
        what: the file is, as "fold table".
        text: the file's content where it is known already; `path` is its name then.
        optional: columns that are read where they are there.

    Raises:
        InputError: the file is missing or no CSV, lacks a column, has rows with more values than columns, or a value
            that is absurdly long or no number.
    """
    try:
        source = path if text is None else io.StringIO(text)
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parser errors and undecodable bytes are ValueErrors
        raise InputError(f"{path}: not a readable {what} ({shorten(error)}); {cure}") from error
    # Of values too many in every row, pandas makes names of the rows, and every column holds its neighbour's values.
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: more values than columns in its rows; {cure}")
    if absent := [column for column in columns if column not in table.columns]:
        raise InputError(f"{path}: no column {absent[0]!r}, only {', '.join(table.columns)[:200]!r}; {cure}")
    kinds = dict(columns) | {column: kind for column, kind in (optional or {}).items() if column in table.columns}
    for column, kind in kinds.items():
        if fault := _find_fault(table, next(iter(columns)), column, kind):
            raise InputError(f"{path}: {fault}; {cure}")
    return table[list(kinds)].astype(kinds)


def write_csv_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, numbers to six decimals, atomically and the same bytes for the same table."""
    write_text(path, table.round(6).to_csv(index=False, lineterminator="\n"))


def check_image_id(image_id: str, where: str) -> None:
    """Refuse an id that cannot stand in a CSV.

    Raises:
        InputError: it is empty, absurdly long or no UTF-8, ends in a blank, or holds a comma, quote or line break;
            `where` says what it is from.
    """
    is_plain = (
        0 < len(image_id) <= _LONGEST_VALUE and image_id == image_id.strip() and not set(image_id) & set(',"\r\n')
    )
    if not is_plain or not _is_utf8(image_id):
        raise InputError(f"{where}: the id {image_id[:60]!r} cannot stand in a CSV; rename the image's folder or file")


def _find_fault(table: pd.DataFrame, names: str, column: str, kind: type) -> str | None:
    """Say what is wrong with the first faulty value of a column of texts."""
    values = table[column]
    if kind is str:
        faulty = values.str.len() > _LONGEST_VALUE
        return f"{column} {values[faulty].iloc[0][:60]!r} is absurdly long" if faulty.any() else None
    pattern, number = _NUMBERS[kind]
    if (good := values.str.fullmatch(pattern)).all():
        return None
    row = table[~good].iloc[0]
    return f"{names.removesuffix('_id')} {row[names][:200]!r} has {column} {row[column][:40]!r}, not {number}"


def _is_utf8(text: str) -> bool:
    """Say whether the text can be written: a name that a file system gave may hold half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
