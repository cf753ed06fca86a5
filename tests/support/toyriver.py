"""A source tree whose stages are toys: real names, real configurations and contract, work that takes milliseconds.

So the flow's own code meets the real river, identity and store, and a whole run costs as little as its processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


STAGE = '''
"""A toy: every output is a function of configuration, inputs and seed, as a real stage's is."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time

from stages.contract import StageError, fresh_role

COPIES = {copies!r}


def run(config, inputs, out, runtime, seed=0):
    """Hash everything that may matter and write it under every role."""
    digest = hashlib.sha256(config.model_dump_json(exclude=set(config.LOCATIONS)).encode() + str(seed).encode())
    for role in sorted(inputs):
        for path in sorted(p for p in inputs[role].rglob("*") if p.is_file()):
            digest.update(path.relative_to(inputs[role]).as_posix().encode() + path.read_bytes())
    act(runtime, out)
    for role in config.SPEC.outputs:
        folder = fresh_role(out, role)
        parts = [path.stem for path in inputs.get("documents", out).iterdir()] if role == "shards" else [role]
        for name in COPIES.get(role, [part + ".txt" for part in parts]):
            line = {{"step": 1, "train_loss": 3.0, "digest": digest.hexdigest() + role + name}}
            (folder / name).write_text(json.dumps(line), encoding="utf-8")
    runtime.report_progress(1, 1, "things", loss=1.5)
    return {report!r}


def act(runtime, out):
    """What else happens when this toy runs."""
{body}
'''
COPIES = {
    "corpus": {"train": ["00000.parquet", "00001.parquet"], "val": ["00000.parquet"]},
    "train": {"curve": ["curve.jsonl"]},
}
REPORTS = {
    "evaluate": {"bpb": 1.25, "nats_per_token": 2.5, "tokens": 1000, "bytes": 3000},
    "audit": {
        "verdict": {"strict": "unknown", "board": "legal"},
        "rules": {"C1": "pass", "B2": "not_applicable", "C4": "fail"},
        "scores": {
            name: {
                "strict": {"verdict": "unknown", "because": ["E1: nothing has looked at it"], "not_judged": ["B2"]},
                "board": {"verdict": "legal", "because": [], "not_judged": ["B2"]},
            }
            for name in ("roundtrip", "sliding")
        },
        "forward_tokens": 120,
        "evaluation_forward_tokens": 1000,
    },
    "weigh": {"code_bytes": 10, "model_bytes": 20, "total_bytes": 30, "cap_bytes": 100},
}
STAGES = (
    *("corpus", "vocabulary", "tokenize", "train", "average", "quantize", "compress", "bundle", "weigh", "evaluate"),
    *("overlap", "audit"),
)


def make_tree(folder: Path) -> Path:
    """Write the tree into `folder`: ours, with every stage's work replaced. Its `flows.cli` runs the toys."""
    for package in ("model", "configs", "stages", "artifacts", "flows"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for stage in STAGES:
        behave(folder, stage, "pass")
    return folder


def behave(tree: Path, stage: str, body: str) -> None:
    """Make a toy do `body` (statements; `runtime`, `out`, os, signal, sys, time at hand) before it writes anything."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    text = STAGE.format(copies=COPIES.get(stage, {}), report=REPORTS.get(stage, {"toy": stage}), body=lines)
    (tree / "stages" / stage / "stage.py").write_text(text, encoding="utf-8")


@contextmanager
def behaving(tree: Path, stage: str, body: str) -> Iterator[Path]:
    """During the body; afterwards the stage's code, whose path this is, is what it was: neighbours share the tree."""
    path = tree / "stages" / stage / "stage.py"
    before = path.read_text(encoding="utf-8")
    behave(tree, stage, body)
    try:
        yield path
    finally:
        path.write_text(before, encoding="utf-8")
