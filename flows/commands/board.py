"""`fairway board`: the leaderboard of the store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from artifacts.store import Store
from configs.load import challenge
from flows.board import board as make_board
from flows.commands.seeds import number
from flows.prepare import local_folder, sweep
from flows.tables import Table, print_json
from flows.verdicts import words
from stages.contract import StageError


def board(arguments: argparse.Namespace) -> int:
    """Print a table for each scale and validation set."""
    policies = challenge()["policies"]
    if arguments.policy not in policies:
        raise StageError(f"--policy is {' or '.join(policies)}; got {arguments.policy!r}")
    store = Store.open(arguments.store)
    sweep(store, local_folder(store))
    found = make_board(store, arguments.policy, arguments.scale)
    if arguments.json:
        print_json(found)
        return 0
    for group in found["groups"]:
        _table(group).print()
    if not found["groups"]:
        sys.stdout.write(f"no run in {store.url} has a score yet\n")
    if found["without_score"]:
        without = len(found["without_score"])
        sys.stdout.write(f"{without} {'run has' if without == 1 else 'runs have'} no score; see `fairway runs ls`\n")
    return 0


def _table(group: Mapping[str, Any]) -> Table:
    rows = [
        [
            "" if row["not_eligible"] else place,
            row["recipe"],
            row["point"] or _overrides(row["overrides"]),
            ", ".join(map(str, row["seeds"])),
            row["protocol"],
            number(row["mean"]),
            number(row["std"]),
            "" if row["bytes"] is None else f"{row['bytes']:,}",
            words(row["verdict"]) or "not audited",
            "; ".join([*row["not_eligible"], *row["marks"], *_rejected(row)]),
        ]
        for place, row in enumerate(group["rows"], 1)
    ]
    headings = ["#", "recipe", "point-or-overrides", "seeds", "score", "BPB", "std", "bytes", "audit", "marks"]
    title = f"scale {group['scale']}, validation {group['validation']}"
    return Table(title, headings, rows, "# BPB std bytes")


def _overrides(given: Sequence[str]) -> str:
    """Each path once, with its last value."""
    return " ".join({text.partition("=")[0]: text for text in given}.values())


def _rejected(row: Mapping[str, Any]) -> list[str]:
    seeds = [str(seed) for seed in row["rejected_seeds"] if seed not in row["seeds"]]
    return [f"without seed {', '.join(seeds)}, rejected"] if seeds else []
