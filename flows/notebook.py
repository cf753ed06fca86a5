"""Fairway from Python, for notebooks: open what was made, run, compare. `import fairway` is this. See docs/notebook.md.

    fairway.open("pr714/full/42/train@3").report
    fairway.run("quickstart", scale="smoke", seed=1)["scores"]
    fairway.compare("20260714-093012-417-4f2a", "20260715-101500-003-9b1c")["scores"]

What is slow to import - torch, Prefect, scipy - is imported by the call that needs it, if any does.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.record import File, Record
from artifacts.store import Store
from flows.cells import Comparison, Result, Runs, artifact_html
from flows.prepare import DEFAULT_STORE, Request, prepare
from flows.server import quiet
from stages.contract import StageError

__all__ = ["Artifact", "Comparison", "Result", "Runs", "compare", "open", "run", "runs"]


@dataclass(frozen=True)
class Artifact:
    """One finished stage. Its files come from the store, verified, when they are asked for."""

    record: Record
    store: Store = field(repr=False)

    @property
    def report(self) -> dict[str, Any]:
        """The stage's metrics."""
        return self.record.report

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of its outputs, such as raw, ema and curve."""
        return tuple(dict.fromkeys(file.path.split("/", 1)[0] for file in self.record.files))

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Train's curve: a dict per line, with step, train_loss in nats per token and more. StageError without one."""
        return self.lines("curve")

    def files(self, role: str) -> tuple[File, ...]:
        """The files of one output; StageError if there is no such output."""
        found = self.record.role(role)
        if not found:
            raise StageError(
                f"an artifact has named outputs; {self.record.label} has no {role!r}; it has {', '.join(self.roles)}"
            )
        return found

    def path(self, role: str, folder: str | Path | None = None) -> Path:
        """A folder with the files of one output: `folder`, which must not have them yet, or a temporary one."""
        where = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix=f"fairway-{role}-"))
        self.store.fetch(self.files(role), where)
        return where

    def read(self, role: str, name: str = "") -> bytes:
        """The bytes of a file of one output; without a name, of its only file."""
        files = [file for file in self.files(role) if name in ("", file.path)]
        if len(files) != 1:
            names = ", ".join(file.path for file in self.files(role))
            raise StageError(f"read takes one file; {role!r} has {names}; name one of them")
        return self.store.read_object(files[0].sha256)

    def lines(self, role: str, name: str = "") -> list[dict[str, Any]]:
        """A file of JSON lines, a dict each."""
        return [json.loads(line) for line in self.read(role, name).splitlines()]

    def inputs(self) -> dict[str, list[Artifact]]:
        """What it was made from, by role; inputs from outside the store are not there."""
        found: dict[str, list[Artifact]] = {}
        for role, given in self.record.inputs.items():
            records = [self.store.get(each["stage"], each["key"]) for each in given["from"]]
            found[role] = [Artifact(record, self.store) for record in records if record is not None]
        return found

    def __repr__(self) -> str:
        return f"Artifact({self.record.label} {self.record.key[:12]}: {', '.join(self.roles)})"

    def _repr_html_(self) -> str:
        sizes = {role: sum(file.bytes for file in self.files(role)) for role in self.roles}
        return artifact_html(f"{self.record.label} {self.record.key[:12]}", sizes, self.report)


def open(name: str, store: str | Path = DEFAULT_STORE, *, credentials: str = "") -> Artifact:
    """The artifact of `recipe/scale/seed/stage[part]@version`, `stage/key` or the beginning of a key.

    Args:
        name: which; without a version the newest.
        store: folder or URL.
        credentials: Prefect block with the store's; empty: FAIRWAY_STORE_CREDENTIALS, else this machine's own.

    Raises:
        NotFound, AmbiguousKey: there is none, or more than one.
    """
    opened = _store(store, credentials)
    return Artifact(opened.resolve(name), opened)


def run(
    recipe: str,
    *,
    scale: str = "full",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    store: str | Path = DEFAULT_STORE,
    credentials: str = "",
    pool: str = "",
    until: str = "",
) -> Result:
    """Run a recipe here: only what the store does not have runs.

    Args:
        recipe: a built-in recipe, or a .toml file.
        scale: smoke, one-gpu or full.
        seed: of the training; None takes the recipe's.
        overrides: fields to set, such as "train.muon.lr=0.02".
        store: folder or URL.
        credentials: Prefect block with the store's; empty: FAIRWAY_STORE_CREDENTIALS, else this machine's own.
        pool: Prefect work pool of the accelerated stages; empty: this machine.
        until: the last stage to run; empty: all.

    Returns:
        The object that `fairway run --json` prints: run, scores by protocol, bytes, stages and more.

    Raises:
        StageError: the recipe or a field is wrong.
        StageFailed: a stage failed.
    """
    _store(store, credentials)
    request = Request(
        recipe=recipe, scale=scale, seed=seed, overrides=tuple(overrides), store=str(store), pool=pool, until=until
    )
    with prepare(request) as prepared:
        quiet()
        from flows import pipeline  # imports Prefect, which a wrong recipe must not wait for

        return Result(pipeline.run(prepared))


def runs(store: str | Path = DEFAULT_STORE, *, credentials: str = "") -> Runs:
    """Every run, oldest first: id, recipe, scale, seed, overrides, state, times, scores, bytes and GPU hours."""
    from flows.commands.runs import line

    return Runs(map(line, _store(store, credentials).list_runs()))


def compare(
    a: str, b: str, *, scale: str = "full", store: str | Path = DEFAULT_STORE, credentials: str = ""
) -> Comparison:
    """What differs between two runs, sets, recipes (at `scale`) or artifacts.

    Returns:
        The object that `fairway compare --json` prints: fields, scores with their noise, bytes, stages and why.

    Raises:
        StageError: one of them is unknown, or they are not of a kind.
    """
    from flows import compare as comparing  # imports scipy

    opened = _store(store, credentials)
    sides = [comparing.find_subject(opened, text, scale) for text in (a, b)]
    return Comparison(comparing.compare(opened, *sides))


def _store(store: str | Path, credentials: str) -> Store:
    """The store, with the credentials of a Prefect block if one is named here or in the environment."""
    url = str(store)
    if credentials or ("://" in url and os.environ.get("FAIRWAY_STORE_CREDENTIALS")):
        from flows.commands.credentials import let_in  # imports Prefect

        let_in(url, credentials)
    return Store.open(url)
