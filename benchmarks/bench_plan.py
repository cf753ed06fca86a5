"""How long does `fairway plan` take beside 100,000 records? Whole processes, imports included, less `python -c pass`.

    python benchmarks/bench_plan.py [--records 100000] [--runs 20] [--json]

Plans of the same recipe: everything cached; a field of `train` changed; a source file edited since the last plan.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from artifacts.store import Store
from configs.load import load_recipe
from flows.closure import ROOT
from flows.identity import Identity, find, key_of
from flows.prepare import look_outside
from flows.river import river

RECIPE, SCALE = "base11", "smoke"
ROOMS = ("artifacts", "configs", "flows", "model", "stages")


def fill(store: Store, tree: Path, scratch: Path) -> int:
    """Publish a small record for every step of the recipe; how many there are."""
    loaded = load_recipe(RECIPE, SCALE)
    recipe, identity, outputs = loaded.recipe, Identity(tree), {}
    outside, _ = look_outside(recipe, identity, Path(store.url) / "cache")
    for step in river(recipe, recipe.seed, outside, outputs):
        parts = identity.components(step)
        record = find(store, parts)
        if record is None:
            folder = scratch / hashlib.sha256(step.label.encode()).hexdigest()
            paths = [f"{role}/file" for role in step.config.SPEC.outputs]
            for path in ["train/00000.parquet", "val/00000.parquet"] if step.stage == "corpus" else paths:
                (folder / path).parent.mkdir(parents=True)
                (folder / path).write_text(step.label)
            record = store.publish(
                stage=step.stage, part=step.part, key=key_of(parts), folder=folder,
                components=parts, report={}, inputs={}, provenance={"seconds": 1.0},
            ).record  # fmt: skip
        store.assign_name(recipe.name, loaded.scale, recipe.seed, step.stage, step.part, record.key)
        outputs[step.id] = record.files
    return len(outputs)


def crowd(store: Store, count: int) -> None:
    """Put `count` more records beside them: copies of one under other keys."""
    source = next((Path(store.url) / "records" / "train").glob("*.json")).read_bytes()
    for number in range(count):
        key = hashlib.sha256(str(number).encode()).hexdigest()
        stage = ("corpus", "vocabulary", "tokenize", "train", "average", "quantize", "evaluate")[number % 7]
        path = Path(store.url) / "records" / stage / f"{key}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source)


def seconds(command: list[str], tree: Path, runs: int, expected: int, before_each=lambda: None) -> list[float]:
    """Wall seconds of each of `runs` processes, after one that is not counted."""
    taken = []
    for _ in range(runs + 1):
        before_each()
        started = time.perf_counter()
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        taken.append(time.perf_counter() - started)
        if done.returncode != expected:
            raise SystemExit(f"{command} ended with {done.returncode}, not {expected}:\n{done.stderr}")
    return taken[1:]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--records", type=int, default=100_000)
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "tree"  # a copy, because one of the measurements edits it
        for room in ROOMS:
            shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
        store = Store.open(folder / "store")
        steps = fill(store, tree, folder / "scratch")
        crowd(store, asked.records)
        time.sleep(2.5)  # files younger than two seconds are parsed every time
        plan = [sys.executable, "-m", "flows.cli", "plan", RECIPE, "--scale", SCALE, "--store", str(folder / "store")]
        edited = tree / "model" / "gpt.py"
        text = edited.read_text(encoding="utf-8")
        edits = iter(range(10**6))
        measured = {
            "python -c pass": seconds([sys.executable, "-c", "pass"], tree, asked.runs, 0),
            "plan, all cached": seconds(plan, tree, asked.runs, 0),
            "plan, a field changed": seconds([*plan, "--set", "train.muon.lr=0.5"], tree, asked.runs, 2),
            "plan, a file edited": seconds(
                plan, tree, asked.runs, 2, lambda: edited.write_text(f"{text}\nx = {next(edits)}\n", encoding="utf-8")
            ),
        }
    rows = {what: [statistics.median(taken), max(taken)] for what, taken in measured.items()}
    start = rows["python -c pass"][0]
    if asked.json:
        print(json.dumps({"records": asked.records, "steps": steps, "seconds": measured}))
        return
    print(f"{steps} steps, {asked.records} other records, {asked.runs} runs each")
    for what, (median, worst) in rows.items():
        print(f"{what:24} median {median:6.3f} s  worst {worst:6.3f} s  beyond start-up {median - start:6.3f} s")


if __name__ == "__main__":
    main()
