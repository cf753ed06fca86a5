"""A run in a terminal: a bar with rate and remaining time per running stage; finished stages become lines above."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from flows.session import Event
from flows.show import describe


class LiveRun:
    """A bar per running stage, with rate and remaining time; finished stages become lines above."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(24),
            TextColumn("{task.fields[says]}"),
        )
        self._bars = Progress(*columns, console=console, transient=True, refresh_per_second=8)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveRun:
        self._bars.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event; a stage's output is in its log."""
        if event.kind == "said":
            return
        if event.kind == "start" or (event.kind == "progress" and event.label not in self._tasks):
            # Before a stage starts its inputs are fetched, which may take long enough to be shown.
            old = self._tasks.pop(event.label, None)
            if old is not None:
                self._bars.remove_task(old)
            says = describe(event) if event.kind == "progress" else ""
            self._tasks[event.label] = self._bars.add_task(event.label, total=None, says=says)
        elif event.kind == "progress":
            p = event.progress
            where: dict[str, Any] = {} if p is None else {"completed": p.done, "total": p.total}
            self._bars.update(self._tasks[event.label], says=describe(event), **where)
        else:
            if event.kind in ("done", "failed") and event.label in self._tasks:
                self._bars.remove_task(self._tasks.pop(event.label))
            self._bars.console.print(f"{event.label:<22} {describe(event)}", markup=False, highlight=False)
