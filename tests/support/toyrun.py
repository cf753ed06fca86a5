"""Runs of the toy river without Prefect: a thread pool submits its steps."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flows.drive import drive
from flows.launch import Job, Watch
from flows.prepare import Prepared, Request, prepare
from flows.session import Event, Outcome
from flows.step import hit_or_run
from stages.contract import Runtime

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


class Now:
    """A step that was done when it was submitted: one thread, one order of calls."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def result(self) -> Outcome:
        """What it ended with."""
        return self._outcome


def run_in_one_thread(asked: Request) -> list[Outcome]:
    """A run whose store calls always come in the same order. An error ends it as it would end the flow."""
    with prepare(asked) as prepared:
        session = prepared.session
        outcomes = drive(
            prepared.loaded.recipe,
            prepared.outside,
            session,
            lambda step: Now(hit_or_run(step, session)),
            asked.until,
        )
        session.run.finish("completed")
    return outcomes


def launch_here(job: Job, folder: Path, log: Path, watch: Watch) -> dict[str, Any]:
    """Stands in for `flows.launch.launch`: the toy runs in this process, which takes a millisecond and not a tenth."""
    name = f"stages.{job.stage}"
    scope: dict[str, Any] = {}
    exec(
        compile((job.source_root / f"{name.replace('.', '/')}/stage.py").read_text(encoding="utf-8"), name, "exec"),
        scope,
    )
    config = importlib.import_module(f"{name}.config").Config.model_validate(job.config)
    for each in ("out", "scratch", "checkpoints"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    runtime = Runtime(scratch=folder / "scratch", checkpoints=folder / "checkpoints", device=job.device)
    seed = {} if job.seed is None else {"seed": job.seed}
    return scope["run"](config, job.inputs, folder / "out", runtime, **seed)
