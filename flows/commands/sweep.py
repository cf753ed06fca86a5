"""`fairway sweep`: many points around one recipe, one table and one plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows import show
from flows.commands.seeds import conduct, interval, number, p_text, parse_seeds, request_of, say
from flows.points import Sweep, grid_points, is_sweep, parse_grid, read_sweep
from flows.prepare import local_folder
from flows.seeds import Show
from flows.sweep import check_points, run_sweep, sweep_result
from flows.tables import Table, print_json
from flows.validation import PUBLISHED
from stages.contract import StageError

FAILED = 1


def sweep(arguments: argparse.Namespace) -> int:
    """Check every point, run them, and print one table; exit code 1 if a point has no result."""
    asked = _sweep(arguments)
    seeds = tuple(parse_seeds(arguments.seeds)) if arguments.seeds else asked.seeds
    ready = check_points(asked, request_of(arguments), arguments.protocol)
    document, sets = run_sweep(asked, ready, seeds, conduct, Show(show.viewer, say))
    store = Store.open(arguments.store)
    result = sweep_result(store, document.document, sets)
    result["report"] = str(write_report(result, local_folder(store)))
    if arguments.json:
        print_json(result)
    else:
        for table in tables(result):
            table.print()
        for note in result["notes"]:
            sys.stdout.write(f"note: {note}\n")
        sys.stdout.write(f"sweep {result['sweep']}: {result['state']}\nreport: {result['report']}\n")
    return 0 if result["state"] == "completed" else FAILED


def _sweep(arguments: argparse.Namespace) -> Sweep:
    path = Path(arguments.recipe)
    axes = [parse_grid(text) for text in arguments.grid]
    if arguments.recipe.endswith(".toml") and is_sweep(path):
        if axes:
            raise StageError(f"a sweep is a file or --grid; got both, {path} and {arguments.grid[0]!r}; drop one")
        return read_sweep(path)
    if not axes:
        raise StageError(
            f"a sweep has points; {arguments.recipe} is a recipe and there is no --grid; add for instance "
            "--grid quantize.matrices.bits=5,6, or name a sweep's file such as configs/sweeps/pr398.toml"
        )
    return Sweep(name=path.stem, recipe=arguments.recipe, points=grid_points(axes))


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Every point, failed ones too, and what is left out."""
    published = any(line["published"] is not None for line in result["points"])
    rows = []
    for line in result["points"]:
        marks = [f"breaks {' '.join(line['rules_broken'])}"] if line["rules_broken"] else []
        marks += ["over the cap"] if line["over_cap"] else []
        rows.append(
            [
                line["name"] + (" (base)" if line["name"] == result["base"] else ""),
                line["n"],
                number(line["mean"]),
                number(line["std"]),
                interval(line),
                number(line["difference"], "+"),
                p_text(line["p"]),
                p_text(line["p_holm"]),
                "" if line["bytes"] is None else f"{line['bytes']:,}",
                *([number(line["published"], digits=4)] if published else []),
                "; ".join([line["state"] if line["error"] else "", line["error"], *marks]).strip("; "),
                line["note"],
            ]
        )
    headings = ["point", "n", "mean-BPB", "std", "95%-interval", "difference", "p", "p-(Holm)", "bytes"]
    headings += [*(["published"] if published else []), "marks", "note"]
    if not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    title = f"{result['sweep']}: {len(rows)} points, seeds {', '.join(map(str, result['seeds']))}"
    found = [Table(title, headings, rows, "n mean-BPB std difference p p-(Holm) bytes published")]
    rows = [[each.get("name", ""), number(each.get("published"), digits=4), each.get("why", "")]
            for each in result["left_out"]]  # fmt: skip
    found.append(Table("left out", ["point", "published", "why"], rows, "published"))
    return found


def write_report(result: Mapping[str, Any], local: Path) -> Path:
    """The sweep's page, beside the reports of runs."""
    from flows import plots  # draws with matplotlib, half a second to import
    from flows.pages import Page, write_page

    groups = [
        plots.Group(
            line["name"],
            list(line["values"].values()),
            line["low"],
            line["high"],
            line["published"] if line["validation"] == PUBLISHED else None,
        )
        for line in result["points"]
    ]
    page = Page(
        f"{result['recipe']} · {result['scale']} · a sweep of {len(groups)} points",
        " ".join(f"{result['about']} sweep {result['sweep']}, {result['state']}".split()),
        [table for table in tables(result) if table.rows],
        plots.dots(groups),
        "Every point: its seeds, mean and 95 % interval",
        result["notes"],
    )
    return write_page(page, local / "reports" / result["sweep"])
