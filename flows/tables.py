"""Tables, durations and sizes as text. On a terminal tables are drawn with rich, which only then is imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table that can be printed or put on a page. `right` lists headings to align right."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    right: str = ""

    @property
    def right_headings(self) -> frozenset[str]:
        """Headings of columns of numbers."""
        return frozenset(self.right.split())

    def texts(self) -> list[list[str]]:
        """Every cell as people read it."""
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]

    def print(self) -> None:
        """Print it; nothing if it has no rows."""
        if self.rows:
            print_table(self.headings, self.rows, self.title, self.right)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def seconds_text(seconds: float) -> str:
    """`3.2 s`, `4:07` or `2:03:11`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bytes_text(count: float) -> str:
    """Decimal units, as the challenge counts: `15.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("the loop returns")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "", right: str = "") -> None:
    """A table: drawn on a terminal, tab-separated for programs. `right` lists headings to align right."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        if title:
            sys.stdout.write(f"{title}\n")
        sys.stdout.writelines("\t".join(row) + "\n" for row in [list(headings), *texts])
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right.split() else "left", overflow="fold")
    for row in texts:
        table.add_row(*row)
    Console().print(table)
