"""The run document, `runs/<id>.json`: what was asked for, how far it came, and which record each step ended with.

It is written when the run starts, so that a crashed run is seen as one, and again whenever a step changes. Records are
what counts; this is the list of them that people and `gc` read.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from artifacts.errors import NotFound

STATES = ("running", "completed", "failed", "crashed", "cancelled")


class RunStore(Protocol):
    """The part of the store that a run document needs."""

    def write_run(self, run: dict[str, Any]) -> None:
        """Replace `runs/<run["id"]>.json`."""

    def read_run(self, run_id: str) -> dict[str, Any]:
        """The document of a run, or NotFound."""
        ...


def utc_now() -> str:
    """This moment as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_id() -> str:
    """A name that sorts by time, to the millisecond, and is unique: `20260714-093012-417-4f2a`."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03}-{secrets.token_hex(2)}"


def gpu_hours(document: Mapping[str, Any]) -> float:
    """GPU hours of the stages that a run ran to their end, on whatever machine."""
    return sum(step.get("gpu_s", 0.0) for step in document["steps"]) / 3600


def mark_crashed(store: RunStore, run_id: str) -> None:
    """Say of a run whose process is gone that it crashed, if its document still says that it is running."""
    try:
        document = store.read_run(run_id)
    except NotFound:
        return
    if document["state"] == "running":
        steps = [{**s, "state": "failed"} if s.get("state") == "running" else s for s in document["steps"]]
        store.write_run({**document, "state": "crashed", "steps": steps})


class RunDocument:
    """One run's document, kept up to date in the store. Steps finish in several threads at once."""

    def __init__(self, store: RunStore, head: Mapping[str, Any]) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._document: dict[str, Any] = {
            "id": new_run_id(),
            **head,
            "state": "running",
            "started": utc_now(),
            "finished": None,
            "steps": [],
        }
        self._steps: dict[tuple[str, str], dict[str, Any]] = {}

    @property
    def id(self) -> str:
        """The run's id."""
        return self._document["id"]

    def snapshot(self) -> dict[str, Any]:
        """The document as it would be written now."""
        with self._lock:
            return self._current()

    def write(self) -> None:
        """Write the document as it stands."""
        with self._lock:
            self._store.write_run(self._current())

    def note(self, **fields: Any) -> None:
        """Set fields of the run itself; they are written with whatever is written next."""
        with self._lock:
            self._document.update(fields)

    def step(self, stage: str, part: str, write: bool = True, **fields: Any) -> None:
        """Set fields of a step (state, key, artifact, seconds, error, ...) and write."""
        with self._lock:
            entry = self._steps.setdefault((stage, part), {"stage": stage, "part": part})
            entry.update(fields)
            if write:
                self._store.write_run(self._current())

    def finish(self, state: str, **fields: Any) -> None:
        """Set the final state and write."""
        if state not in STATES:
            raise ValueError(f"a run's state is one of {', '.join(STATES)}; got {state!r}")
        with self._lock:
            self._document.update(fields, state=state, finished=utc_now())
            for entry in self._steps.values():
                if entry.get("state") == "running":
                    entry["state"] = "cancelled" if state == "cancelled" else "failed"
            self._store.write_run(self._current())

    def abandon(self, error: BaseException) -> None:
        """Close a document that nobody has closed: what ended the run happened outside the flow."""
        if self._document["state"] == "running":
            stopped = isinstance(error, KeyboardInterrupt)
            self.finish("cancelled" if stopped else "failed", error=str(error) or type(error).__name__)

    def _current(self) -> dict[str, Any]:
        return {**self._document, "steps": [dict(entry) for entry in self._steps.values()]}
