"""Transfers to and from the store, shown: in a run as events of its steps, in a command on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from artifacts.meter import Moved
from flows.session import Event, Session


def told(session: Session, label: str) -> Callable[[Moved], None]:
    """Who hears of a step's transfers: whoever shows the run."""
    return lambda moved: session.tell(Event("progress", label, str(moved)))


@contextmanager
def on_terminal() -> Iterator[Callable[[Moved], None]]:
    """One line of stderr that changes, and is gone at the end; nothing where nobody looks."""
    terminal, shown = sys.stderr.isatty(), False

    def show(moved: Moved) -> None:
        nonlocal shown
        if terminal:
            shown = True
            sys.stderr.write(f"\r\x1b[2K{moved}")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
