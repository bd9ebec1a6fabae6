"""The rows of the competition's CSV files, which people hand in and others made.

In: a CSV and its columns. Out: its rows with the lines that they stand on, so that a fault can be named with its line.
Ids and runs need no quoting, so a line is a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError

_LONGEST_ID = 512  # characters, as of a name in an archive


@dataclass(frozen=True)
class Row:
    """One nucleus, or with an empty text none, and where the file says so."""

    line: int  # counted from 1, the header's
    text: str  # the runs


def read_rows(path: Path, columns: tuple[str, ...], any_order: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values in the order of `columns`) below the header.

    Only what others made may have its columns in `any_order`.

    Raises:
        InputError: the file is missing, is not UTF-8, has other columns, or a row has other values than columns, an
            open quote, or no id or an absurdly long one.
    """
    try:
        # Spreadsheets put a byte order mark first, which utf-8-sig drops, and end lines in their own ways.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give a CSV file") from error
    except UnicodeDecodeError as error:
        broken = error.object.count(b"\n", 0, error.start) + 1
        raise name_fault(path, broken, f"not UTF-8 at byte {error.start}; save it as plain UTF-8 text") from error
    except ValueError as error:  # a path that can be none
        raise InputError(f"{path}: cannot be read ({error}); give a CSV file") from error
    lines = text.rstrip("\n").split("\n")
    header = _split(lines[0])
    if tuple(header) != columns and not (any_order and sorted(header) == sorted(columns)):
        raise name_fault(path, 1, f"the columns are {','.join(header)[:200]!r}; they must be {','.join(columns)!r}")
    for number, line in enumerate(lines[1:], start=2):
        values = _split(line)
        if '"' in line and any('"' in value for value in values):
            raise name_fault(path, number, f"{line[:60]!r} has a quote that nothing closes; drop it")
        if len(values) != len(columns) or not 0 < len(values[header.index(columns[0])]) <= _LONGEST_ID:
            raise name_fault(path, number, f"{line[:60]!r} is no row of {','.join(columns)}; mend or drop it")
        yield number, [values[header.index(name)] for name in columns]


def _split(line: str) -> list[str]:
    """Return the values of a line without their quotes; one quote alone is part of a value, and refused there."""
    values = [value.strip() for value in line.split(",")]
    return [value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value for value in values]


def name_fault(path: Path, line: int, what: str) -> InputError:
    """Return the error that says what is wrong on a line of a file."""
    return InputError(f"{path}: line {line}: {what}")
