"""The run document, `runs/<id>.json`: what was asked for, how far it came, and which record each step ended with.

It is written when the run starts, so that a crashed run is seen as one, and again whenever a step changes. Records are
what counts; this is the list of them that people and `gc` read.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from artifacts.errors import BadName, NotFound, StoreError
from stages.contract import StageError

LEAST_DIGITS = 4  # of a part of a run's id
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


def label_of(step: Mapping[str, Any]) -> str:
    """`stage` or `stage[part]`, of a step in a run's document, or of a record's producer."""
    part = step.get("part", "")
    return f"{step['stage']}[{part}]" if part else step["stage"]


def gpu_hours(document: Mapping[str, Any]) -> float:
    """GPU hours of everything that a run started, on whatever machine: what it was billed for."""
    return sum(step.get("gpu_s", 0.0) for step in document["steps"]) / 3600 + lost_gpu_hours(document)


def lost_gpu_hours(document: Mapping[str, Any]) -> float:
    """The part of `gpu_hours` that went into attempts without a result: failed, cancelled, lost or made again."""
    return sum(step.get("lost_gpu_s", 0.0) for step in document["steps"]) / 3600


def hours_text(document: Mapping[str, Any]) -> str:
    """`GPU hours 0.42, of which 0.10 lost`; empty if no GPU was used."""
    hours, lost = gpu_hours(document), lost_gpu_hours(document)
    if not hours:
        return ""
    return f"GPU hours {_hours(hours)}" + (f", of which {_hours(lost)} lost" if lost else "")


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"


def mark_crashed(store: RunStore, run_id: str) -> None:
    """Say of a run whose process is gone that it crashed, if its document still says that it is running."""
    try:
        document = store.read_run(run_id)
    except NotFound:
        return
    if document["state"] == "running":
        steps = [{**s, "state": "failed"} if s.get("state") == "running" else s for s in document["steps"]]
        store.write_run({**document, "state": "crashed", "steps": steps})


class RunsStore(Protocol):
    """The part of the store that finding a run needs."""

    def read_run(self, run_id: str) -> dict[str, Any]:
        """The document of a run, or NotFound."""
        ...

    def list_runs(self) -> list[dict[str, Any]]:
        """Every run's document."""
        ...


def find_run(store: RunsStore, text: str) -> dict[str, Any]:
    """The run whose id this is, or the only one whose id has it in it. NotFound, BadName or StageError."""
    try:
        return store.read_run(text)
    except (NotFound, BadName):
        found = [run for run in store.list_runs() if text in run["id"]] if len(text) >= LEAST_DIGITS else []
        if len(found) > 1:
            raise StageError(
                f"a part of a run's id says which one it is; {text!r} is in {len(found)} of them: "
                f"{', '.join(run['id'] for run in found[-3:])}; give more of it"
            ) from None
        if not found:
            raise
        return found[0]


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
        self._settled = True  # unless writing the final state has failed

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

    def lose(self, stage: str, part: str, seconds: float, gpus: int) -> None:
        """Count an attempt at a step that left no result, and write: it was paid for like any other."""
        with self._lock:
            entry = self._steps.setdefault((stage, part), {"stage": stage, "part": part})
            entry["lost_s"] = round(entry.get("lost_s", 0.0) + seconds, 3)
            if gpus:
                entry["lost_gpu_s"] = round(entry.get("lost_gpu_s", 0.0) + gpus * seconds, 3)
            with suppress(StoreError):  # a failure is told here; what failed may be the store
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
            self._settled = False
            self._store.write_run(self._current())
            self._settled = True

    def settle(self) -> bool:
        """Write the final state again if that failed, as on a full disk that has room by now; whether it is written."""
        if not self._settled:
            with suppress(StoreError), self._lock:
                self._store.write_run(self._current())
                self._settled = True
        return self._settled

    def abandon(self, error: BaseException) -> None:
        """Close a document that nobody has closed: what ended the run happened outside the flow."""
        if self._document["state"] == "running":
            stopped = isinstance(error, KeyboardInterrupt)
            with suppress(StoreError):  # what ended the run is what is told
                self.finish("cancelled" if stopped else "failed", error=str(error) or type(error).__name__)

    def _current(self) -> dict[str, Any]:
        return {**self._document, "steps": [dict(entry) for entry in self._steps.values()]}
