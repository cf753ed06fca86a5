"""Runs of the toy river without Prefect: a thread pool submits its steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flows.drive import drive
from flows.prepare import Prepared, Request, prepare
from flows.session import Event, Outcome
from flows.step import hit_or_run

RECIPE = """
about = "A recipe for toys."
[corpus]
source = "{source}"
[evaluate.raw]
of = "raw"
[evaluate.roundtrip]
[evaluate.sliding]
protocol = "sliding"
"""


def write_recipe(folder: Path, more: str = "") -> Path:
    """A recipe named toy, and the text that its corpus reads."""
    source = folder / "text.txt"
    if not source.exists():
        source.write_text("Some text.\n", encoding="utf-8")
    path = folder / "toy.toml"
    path.write_text(RECIPE.format(source=source) + more, encoding="utf-8")
    return path


def request(folder: Path, tree: Path, **changes: Any) -> Request:
    """A request for the toy recipe in a store below `folder`."""
    asked: dict[str, Any] = {"recipe": str(folder / "toy.toml"), "store": str(folder / "store")}
    asked |= {"source_root": tree, "grace_s": 1.0, "cores": 4}
    return Request(**{**asked, **changes})


def run_toy(
    asked: Request, tell: Callable[[Event], None] = lambda event: None, each: Callable[[Prepared], None] | None = None
) -> list[Outcome]:
    """Prepare and drive; the run's document is closed as the flow would close it."""
    with prepare(asked, tell) as prepared, ThreadPoolExecutor(8) as pool:
        if each is not None:
            each(prepared)
        session = prepared.session

        def submit(step: Any) -> Any:
            return pool.submit(hit_or_run, step, session)

        outcomes = drive(prepared.loaded.recipe, prepared.outside, session, submit, asked.until)
        session.run.finish("completed")
    return outcomes
