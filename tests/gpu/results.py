"""What `make gpu` found: tables, written to results.json and results.md as soon as each is there."""

import json
from collections.abc import Callable, Iterable, Iterator
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
    """The tables of some parts, and the files that they are written to after each.

    Args:
        folder: for results.json and results.md.
        head: lines that results.md begins with.
        device: what these parts run on, in a line.
        parts: those that are asked now; what the files have of others stays.
    """

    def __init__(self, folder: Path, head: str, device: str, parts: Iterable[str]) -> None:
        self._folder, self._head, self._device, self._asked = folder, head, device, list(parts)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "results.json"
        known = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.is_file() else {}
        self._parts: dict[str, dict[str, Any]] = {part: known[part] for part in known if part not in self._asked}

    @property
    def missed(self) -> list[str]:
        """What is not as it has to be, in the parts that are asked now."""
        tables = [(part, table) for part in self._asked for table in self._parts.get(part, {"tables": []})["tables"]]
        return [f"{part}: {what}" for part, table in tables for what in table["missed"]]

    def add(self, part: str, table: Table, seconds: float) -> None:
        """Take a table, which took so many seconds to find, and write all there are."""
        found = self._parts.setdefault(part, {"device": self._device, "tables": []})
        found["tables"].append(asdict(table) | {"seconds": round(seconds, 1)})
        (self._folder / "results.json").write_text(
            json.dumps({"parts": self._parts}, indent=1) + "\n", encoding="utf-8"
        )
        (self._folder / "results.md").write_text(self._render(), encoding="utf-8")

    def _render(self) -> str:
        lines = ["# What a GPU says", "", self._head]
        for part, found in self._parts.items():
            lines += ["", f"## {part}", "", f"On: {found['device']}."]
            for table in found["tables"]:
                took = "" if table["seconds"] is None else f" ({table['seconds']} s)"
                lines += ["", f"### {table['title']}{took}", ""]
                if table["rows"]:
                    lines += ["| " + " | ".join(table["header"]) + " |", "|" + "---|" * len(table["header"])]
                    lines += ["| " + " | ".join(row) + " |" for row in table["rows"]]
                lines += [f"- **missed**: {what}" for what in table["missed"]]
                lines += ["", table["note"]] if table["note"] else []
        return "\n".join(lines) + "\n"
