"""`fairway compare`: what differs between two runs, sets, recipes or artifacts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from artifacts.store import Store
from flows.commands.seeds import interval, number, p_text
from flows.compare import compare as compare_subjects
from flows.compare import find_subject
from flows.tables import Table, print_json


def compare(arguments: argparse.Namespace) -> int:
    """Print the difference."""
    store = Store.open(arguments.store)
    sides = [find_subject(store, text, arguments.scale) for text in (arguments.a, arguments.b)]
    found = compare_subjects(store, *sides)
    if arguments.json:
        print_json(found)
        return 0
    sys.stdout.write(f"a: {found['a']}\nb: {found['b']}\n")
    for table in tables(found):
        table.print()
    if not found.get("fields", found.get("report")):
        sys.stdout.write("no field of the recipes differs\n" if "fields" in found else "the reports do not differ\n")
    if found["stages"] and all(stage["equal"] for stage in found["stages"]):
        sys.stdout.write("every step is the same artifact\n")
    for note in found["notes"]:
        sys.stdout.write(f"note: {note}\n")
    return 0


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The difference as tables, those without rows too."""
    kind = "fields" if "fields" in found else "report"
    rows = [[each["path"], _value(each["a"]), _value(each["b"])] for each in found[kind]]
    made = [Table("fields that differ" if kind == "fields" else "reports", ["field", "a", "b"], rows)]
    headings = ["score", "n", "a", "b", "b-a", "noise", "p-(Welch)", "p-(paired)"]
    rows = [_score(score) for score in found.get("scores", [])]
    made.append(Table("bits per byte; p: one-sided, that b is better", headings, rows, "a b b-a p-(Welch) p-(paired)"))
    rows = [[each["what"], f"{each['a']:,}", f"{each['b']:,}", f"{each['difference']:+,}"] for each in found["bytes"]]
    made.append(Table("bytes (of several seeds the largest)", ["what", "a", "b", "b-a"], rows, "a b b-a"))
    rows = [[each["step"], "; ".join(each["why"]) or "?"] for each in found["stages"] if not each["equal"]]
    equal = sum(each["equal"] for each in found["stages"])
    made.append(Table(f"steps that differ ({equal} are the same artifact)", ["step", "why"], rows))
    return made


def _score(score: Mapping[str, Any]) -> list[Any]:
    welch, paired = score["welch"], score["paired"]
    told = paired if paired and paired["p"] is not None else welch
    noise = ""
    if score["noise"]:
        noise = f"{score['noise']['times']:.1f} x that of seeds ({score['noise']['set']})"
    elif told["low"] is not None:
        # Tests count improvements as positive; here lower is better and negative, as in b - a.
        noise = interval({"low": -told["high"], "high": -told["low"]})
    return [
        score["protocol"],
        f"{score['a']['n']}, {score['b']['n']}",
        number(score["a"]["mean"]),
        number(score["b"]["mean"]),
        number(score["difference"], "+"),
        noise,
        p_text(welch["p"]),
        p_text(paired["p"]) if paired else "",
    ]


def _value(value: Any) -> str:
    return "(none)" if value is None else json.dumps(value, ensure_ascii=False)
