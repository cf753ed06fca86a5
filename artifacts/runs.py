"""Runs and sets: `runs/<id>.json`, `sets/<id>.json`, written at the start and replaced as things go on.

A set declares runs before they start (seeds, the points of a sweep) and keeps what became of each.
"""

from __future__ import annotations

from typing import Any, Literal

from artifacts.backend import Backend
from artifacts.documents import dump_document, read_document, read_folder
from artifacts.errors import BadName, NotFound
from artifacts.record import check_word
from artifacts.safety import redact


class Runs:
    """The runs of a store, or its sets. What one holds is the flows' business, but for its `id`."""

    def __init__(self, backend: Backend, what: Literal["run", "set"] = "run") -> None:
        self._backend = backend
        self._what = what
        self._see = "fairway runs ls" if what == "run" else "fairway seeds"

    def write(self, run: dict[str, Any]) -> None:
        """Make or replace the run `run["id"]`; credentials inside addresses are replaced by `***`."""
        if "id" not in run:
            raise BadName(f'a {self._what} is a dict with its name under "id"; got none; add it')
        raw, _ = dump_document(redact(run))
        self._backend.write(self._path(run["id"]), raw)

    def read(self, run_id: str) -> dict[str, Any]:
        """The run with this id."""
        try:
            return read_document(self._backend, self._path(run_id))[0]
        except FileNotFoundError:
            raise self._not_found(run_id) from None

    def all(self) -> list[dict[str, Any]]:
        """Every run, in order of id; damaged ones are left out with a warning, and found by `verify`."""
        return read_folder(self._backend, f"{self._what}s")

    def remove(self, run_id: str) -> None:
        """Forget a run; its artifacts stay until `gc`."""
        if not self._backend.delete(self._path(run_id)):
            raise self._not_found(run_id)

    def _not_found(self, run_id: str) -> NotFound:
        return NotFound(f"there is no {self._what} {run_id!r} in {self._backend.url}; see `{self._see}`")

    def _path(self, run_id: str) -> str:
        return f"{self._what}s/{check_word(run_id, f'{self._what} id')}.json"
