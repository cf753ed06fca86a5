"""`fairway audit --fixtures`: does the audit find what is wrong with submissions of which that is known?"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flows.tables import print_json, print_table
from stages.audit.fixtures.submission import quiet
from stages.audit.fixtures.table import Row, run
from stages.audit.fixtures.workshop import Workshop
from stages.overlap.measure import measure, read_val

SHINGLE_TOKENS, MAX_SAMPLES = 64, 1 << 20


def audit_fixtures(arguments: argparse.Namespace) -> int:
    """Audit all of them and print the table; 0 only if every row is right."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Workshop(Path(folder), measure_overlap), deep=arguments.deep, report=_progress)
    right = sum(row.right for row in rows)
    if arguments.json:
        print_json({"fixtures": [row.to_dict() for row in rows], "right": right, "of": len(rows)})
    else:
        print_table(["fixture", "class", "expected", "found", "right"], [_cells(row) for row in rows])
        sys.stdout.write(f"{right} of {len(rows)} fixtures judged rightly\n")
    return 0 if right == len(rows) else 1


def measure_overlap(train: np.ndarray, val: np.ndarray, bos: int) -> Mapping[str, Any]:
    """What the stage `overlap` measures between two streams."""
    return measure(read_val([val], bos, SHINGLE_TOKENS, MAX_SAMPLES), [train], bos, SHINGLE_TOKENS)


def _cells(row: Row) -> list[str]:
    fixture = row.fixture
    expected = f"{fixture.rule} {fixture.detector}" if fixture.rule else "nothing"
    found = ", ".join(f"{rule} {detector}" for rule, detector in row.broken) or "nothing"
    return [fixture.name, fixture.kind, expected, found, "yes" if row.right else "NO"]


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {total} fixtures" + ("\n" if done == total else ""))
        sys.stderr.flush()
