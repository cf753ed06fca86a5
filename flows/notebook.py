"""Fairway from Python, for notebooks: open what was made, run, compare. See docs/notebook.md.

from flows import notebook as fairway

fairway.open("pr714/full/42/train@3").report
fairway.run("quickstart", scale="smoke", seed=1)["scores"]
fairway.compare("20260714-093012-417-4f2a", "20260715-101500-003-9b1c")["scores"]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.record import File, Record
from artifacts.store import Store
from flows import compare as comparing
from flows.prepare import DEFAULT_STORE, Request, prepare
from flows.server import quiet
from stages.contract import StageError


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
        """A file of JSON lines, such as train's curve."""
        return [json.loads(line) for line in self.read(role, name).splitlines()]

    def inputs(self) -> dict[str, list[Artifact]]:
        """What it was made from, by role; inputs from outside the store are not there."""
        found: dict[str, list[Artifact]] = {}
        for role, given in self.record.inputs.items():
            records = [self.store.get(each["stage"], each["key"]) for each in given["from"]]
            found[role] = [Artifact(record, self.store) for record in records if record is not None]
        return found


def open(name: str, store: str | Path = DEFAULT_STORE) -> Artifact:
    """The artifact of `recipe/scale/seed/stage[part]@version`, `stage/key` or the beginning of a key.

    Raises:
        NotFound, AmbiguousKey: there is none, or more than one.
    """
    opened = Store.open(store)
    return Artifact(opened.resolve(name), opened)


def run(
    recipe: str,
    *,
    scale: str = "full",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    store: str | Path = DEFAULT_STORE,
    pool: str = "",
    until: str = "",
) -> dict[str, Any]:
    """Run a recipe here, its accelerated stages in `pool` if one is named; the object that `fairway run --json` prints.

    Raises:
        StageError: the recipe or a field is wrong.
        StageFailed: a stage failed.
    """
    request = Request(
        recipe=recipe, scale=scale, seed=seed, overrides=tuple(overrides), store=str(store), pool=pool, until=until
    )
    with prepare(request) as prepared:
        quiet()
        from flows import pipeline  # imports Prefect, which a wrong recipe must not wait for

        return pipeline.run(prepared)


def runs(store: str | Path = DEFAULT_STORE) -> list[dict[str, Any]]:
    """The document of every run, oldest first."""
    return Store.open(store).list_runs()


def compare(a: str, b: str, *, scale: str = "full", store: str | Path = DEFAULT_STORE) -> dict[str, Any]:
    """What differs between two runs, sets, recipes or artifacts; the object that `fairway compare --json` prints."""
    opened = Store.open(store)
    return comparing.compare(opened, comparing.find_subject(opened, a, scale), comparing.find_subject(opened, b, scale))
