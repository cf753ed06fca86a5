"""A small page from tables and one picture: HTML to look at, Markdown to paste, PNG to send.

For sets, sweeps and comparisons; a run's own report is `report.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from flows.charts import png, svg
from flows.tables import Table

_STYLE = """
body { margin: 0; background: #f5f7f9; color: #1c2733; font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0; font-size: 26px; } h2 { margin: 0 0 4px; font-size: 16px; } p { margin: 2px 0 0; color: #64748b; }
section { background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: 16px 18px; margin-top: 18px;
          overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid #e2e8f0; vertical-align: top; }
th { color: #64748b; font-weight: 500; } td.n, th.n { text-align: right; }
svg { max-width: 100%; height: auto; display: block; } li { margin: 2px 0; }
"""


@dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom."""

    title: str
    lead: str
    tables: Sequence[Table]
    figure: Figure | None = None
    caption: str = ""
    notes: Sequence[str] = ()


def write_page(page: Page, folder: Path) -> Path:
    """Write index.html, table.md and plot.png into a folder; the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    if page.figure is not None:
        png(page.figure, folder / "plot.png")
    (folder / "table.md").write_text(markdown(page), encoding="utf-8")
    path = folder / "index.html"
    path.write_text(html(page), encoding="utf-8")
    return path


def html(page: Page) -> str:
    """The page as one self-contained HTML file."""
    parts = [f"<h1>{escape(page.title)}</h1>", f"<p>{escape(page.lead)}</p>"]
    if page.figure is not None:
        parts.append(f"<section><h2>{escape(page.caption)}</h2>{svg(page.figure)}</section>")
    parts += [f"<section><h2>{escape(table.title)}</h2>{_html_table(table)}</section>" for table in page.tables]
    if page.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in page.notes)
        parts.append(f"<section><h2>To know</h2><ul>{items}</ul></section>")
    head = f'<meta charset="utf-8"><title>{escape(page.title)} · Fairway</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _html_table(table: Table) -> str:
    classes = [' class="n"' if heading in table.right_headings else "" for heading in table.headings]
    head = "".join(f"<th{cls}>{escape(heading)}</th>" for heading, cls in zip(table.headings, classes, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{cls}>{escape(cell)}</td>" for cell, cls in zip(row, classes, strict=True)) + "</tr>\n"
        for row in table.texts()
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"


def markdown(page: Page) -> str:
    """The page's tables and notes as Markdown."""
    lines = [f"# {page.title}", "", page.lead, ""]
    for table in page.tables:
        lines += [f"## {table.title}", "", _line(table.headings)]
        lines.append(_line("--:" if heading in table.right_headings else "---" for heading in table.headings))
        lines += [_line(row) for row in table.texts()]
        lines.append("")
    if page.notes:
        lines += [*(f"- {note}" for note in page.notes), ""]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
