"""What `make gpu` found: tables, written to results.json and results.md as soon as each is there."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """What a question was answered by.

    Attributes:
        title: the question.
        header: names of the columns.
        rows: of text, as long as the header.
        missed: what of it is not as it has to be; empty where all is well.
        note: what a reader must know.
        data: numbers for whoever goes on with them, as JSON has them.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    missed: list[str] = field(default_factory=list)
    note: str = ""
    data: Any = None


# Answers one question.
Ask = Callable[[], Table]
# Of a part: the questions in their order, by title.
Questions = Iterator[tuple[str, Ask]]


class Results:
    """The tables of a run, by part, and the files that they are written to after each.

    Args:
        folder: for results.json and results.md.
        head: lines that results.md begins with.
        device: what it ran on, in a line.
    """

    def __init__(self, folder: Path, head: str, device: str) -> None:
        self._folder, self._head, self._device = folder, head, device
        self._tables: dict[str, list[dict[str, Any]]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def missed(self) -> list[str]:
        """What is not as it has to be, in all tables."""
        return [
            f"{part}: {what}" for part, tables in self._tables.items() for table in tables for what in table["missed"]
        ]

    def add(self, part: str, table: Table, seconds: float) -> None:
        """Take a table, which took so many seconds to find, and write all there are."""
        self._tables.setdefault(part, []).append(asdict(table) | {"seconds": round(seconds, 1)})
        content = {"device": self._device, "parts": self._tables}
        (self._folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (self._folder / "results.md").write_text(self._render(), encoding="utf-8")

    def _render(self) -> str:
        lines = ["# What a GPU says", "", self._head, "", f"Made on: {self._device}."]
        for part, tables in self._tables.items():
            lines += ["", f"## {part}"]
            for table in tables:
                lines += ["", f"### {table['title']}", ""]
                if table["rows"]:
                    lines += ["| " + " | ".join(table["header"]) + " |", "|" + "---|" * len(table["header"])]
                    lines += ["| " + " | ".join(row) + " |" for row in table["rows"]]
                    lines += [""]
                lines += [f"- **missed**: {what}" for what in table["missed"]]
                lines += [table["note"]] if table["note"] else []
                lines += [f"({table['seconds']} s)"]
        return "\n".join(lines) + "\n"
