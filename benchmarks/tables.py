"""Tables as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the format of its figures; words, without one, stand to the left."""

    head: str
    form: str = ""

    def text(self, value: Any) -> str:
        """A cell: nothing for None, a range for a pair."""
        if value is None:
            return ""
        if isinstance(value, tuple):
            return "-".join(format(part, self.form) for part in value)
        return format(value, self.form)

    def aligned(self, text: str, width: int) -> str:
        return text.rjust(width) if self.form else text.ljust(width)


@dataclass(frozen=True)
class Table:
    """Figures under headings.

    Attributes:
        part: the part of the benchmark that it belongs to.
        title: what is measured, with the sizes.
        columns: one for each value of a row.
        rows: raw values; None where there is none, a pair for a range.
        notes: sentences below the table.
    """

    part: str
    title: str
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: a row has {len(row)} values under {len(self.columns)} headings: {row}")

    def __str__(self) -> str:
        lines = [self.title]
        if self.rows:
            cells = [[c.text(value) for c, value in zip(self.columns, row, strict=True)] for row in self.rows]
            heads = [column.head for column in self.columns]
            widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
            for line in (heads, *cells):
                padded = (c.aligned(text, w) for c, text, w in zip(self.columns, line, widths, strict=True))
                lines.append("  " + "  ".join(padded).rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def plain(self) -> dict[str, Any]:
        """For JSON: each row a mapping from its headings."""
        heads = [column.head for column in self.columns]
        rows = [dict(zip(heads, row, strict=True)) for row in self.rows]
        return {"part": self.part, "title": self.title, "rows": rows, "notes": list(self.notes)}


def paragraph(heading: str, facts: Mapping[str, Any]) -> str:
    """A heading, then a line of each fact."""
    width = max(map(len, facts))
    return "\n".join([heading, *(f"  {name.ljust(width)}  {value}" for name, value in facts.items())])
