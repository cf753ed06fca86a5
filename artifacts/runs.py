"""Runs: `runs/<id>.json`, one document per run, written at the start and replaced as the run goes on."""

from __future__ import annotations

from typing import Any

from artifacts.backend import Backend
from artifacts.documents import dump_document, read_document, read_folder
from artifacts.errors import BadName, NotFound
from artifacts.record import check_word
from artifacts.safety import redact


class Runs:
    """The runs of a store. What a run holds is the flows' business, but for its `id`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def write(self, run: dict[str, Any]) -> None:
        """Make or replace the run `run["id"]`; credentials inside addresses are replaced by `***`."""
        if "id" not in run:
            raise BadName('a run is a dict with its name under "id"; got none; add it')
        raw, _ = dump_document(redact(run))
        self._backend.write(_path(run["id"]), raw)

    def read(self, run_id: str) -> dict[str, Any]:
        """The run with this id."""
        try:
            return read_document(self._backend, _path(run_id))[0]
        except FileNotFoundError:
            raise NotFound(f"there is no run {run_id!r} in {self._backend.url}; see `fairway runs ls`") from None

    def all(self) -> list[dict[str, Any]]:
        """Every run, in order of id; damaged ones are left out with a warning, and found by `verify`."""
        return read_folder(self._backend, "runs")

    def remove(self, run_id: str) -> None:
        """Forget a run; its artifacts stay until `gc`."""
        if not self._backend.delete(_path(run_id)):
            raise NotFound(f"there is no run {run_id!r} in {self._backend.url}; see `fairway runs ls`")


def _path(run_id: str) -> str:
    return f"runs/{check_word(run_id, 'run id')}.json"
