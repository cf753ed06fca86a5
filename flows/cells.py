"""What the Python API hands out, as notebooks show it: plain dicts and lists that also render as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from flows.tables import Table, bytes_text


def table_html(table: Table) -> str:
    """An HTML table; "" if it has no rows."""
    if not table.rows:
        return ""
    right = [heading in table.right_headings for heading in table.headings]

    def row(tag: str, cells: Sequence[str]) -> str:
        sides = ("right" if each else "left" for each in right)
        texts = (
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(texts)}</tr>"

    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    body = "".join(row("td", cells) for cells in table.texts())
    return f"<table>{caption}<thead>{row('th', table.headings)}</thead><tbody>{body}</tbody></table>"


def artifact_html(name: str, files: Mapping[str, int], report: Mapping[str, Any]) -> str:
    """An artifact: its outputs with their bytes, and what its report says in one value."""
    outputs = Table("", ["output", "bytes"], [[role, bytes_text(size)] for role, size in files.items()], "bytes")
    plain = [[key, _number(value)] for key, value in report.items() if isinstance(value, str | int | float | bool)]
    return f"<b>{escape(name)}</b>" + table_html(outputs) + table_html(Table("", ["report", ""], plain))


class Result(dict[str, Any]):
    """The object that `fairway run --json` prints."""

    def _repr_html_(self) -> str:
        from flows.show import score_table  # what a terminal would show

        sizes = self["bytes"]
        total = f"{sizes['total']:,} of {sizes['cap']:,} bytes; " if sizes else ""
        ran = sum(line["state"] == "ran" for line in self["stages"])
        steps = f"{ran} of {len(self['stages'])} steps ran; run {self['run']}"
        return table_html(score_table(self)) + f"<p>{escape(total + steps)}</p>"


class Comparison(dict[str, Any]):
    """The object that `fairway compare --json` prints."""

    def _repr_html_(self) -> str:
        from flows.commands.compare import tables

        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self["notes"])
        sides = f"<p>a: {escape(self['a'])}<br>b: {escape(self['b'])}</p>"
        return sides + "".join(map(table_html, tables(self))) + notes


class Runs(list[dict[str, Any]]):
    """Runs, oldest first, as `fairway runs ls --json` lists them: one flat dict each, as pandas takes them."""

    def _repr_html_(self) -> str:
        rows = [[r["id"], r["recipe"], r["scale"], r["seed"], r["state"], _best(r)] for r in self]
        return table_html(Table("", ["run", "recipe", "scale", "seed", "state", "BPB"], rows, "seed BPB"))


def _best(run: Mapping[str, Any]) -> str:
    scores = list(run.get("scores", {}).values())
    return f"{scores[-1]['bpb']:.4f}" if scores else ""


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
