"""Watches over a flow run from inside: is it being cancelled, is its worker still there, did anybody declare it dead?

Prefect's worker tells a run that it is cancelled by SIGTERM, but only a worker that lives, and SIGTERM also announces
that a machine goes away. So the run asks its server itself, every two seconds, and looks at its own parent process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import Abort, PrefectException
from prefect.runtime import flow_run
from rich.console import Console

from flows.clock import server_now
from flows.signs import WORKER

ASK_EVERY_S = 2.0
TAG = "fairway"  # of every run of a deployment of ours
HEARTBEAT = "fairway.heartbeat"  # Prefect's own carries the sender's clock, by which a living run can seem long dead
HEARTBEAT_S = 30.0
ORPHAN_LIMIT_S = 300.0  # for a last checkpoint, with a store that is slow to answer
Reason = Literal["", "cancelled", "terminated", "orphaned", "replaced"]

WORDS = {
    "cancelled": "cancelled",
    "terminated": "its machine sent SIGTERM; what it kept is in the store, and another attempt goes on from there",
    "orphaned": "its worker is gone; what it kept is in the store, and another attempt goes on from there",
    "replaced": "its run had been ended, or started once more, on the server",
}


def _carry_on(self: Console) -> None:
    """A log line for a worker that is gone: rich would end this process, which has a checkpoint to write."""
    self.quiet = True
    nobody = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nobody, stream.fileno())
    os.close(nobody)


def end_after_parent(parent: int, limit_s: float = ORPHAN_LIMIT_S) -> None:
    """End this process, whatever it does, `limit_s` after it has another parent than `parent`.

    A run whose worker is gone ends by itself. Its last words to a server that is gone too are repeated by Prefect's
    client for longer than half an hour, each.
    """

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(ASK_EVERY_S / 2)
        time.sleep(limit_s)
        os._exit(1)

    threading.Thread(target=wait, name="end after parent", daemon=True).start()


def own_state() -> UUID | None:
    """The id of the state that this process gave to its run when it started; None outside of runs."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return run.state.id if run is not None and run.state is not None and run.state.is_running() else None


def ended_before() -> State[Any] | None:
    """The state in which this run had ended when this process set it running; None if it had not.

    Prefect's server lets a run that was declared dead, or cancelled, while its process was starting run all the same.
    """
    run, own = own_id(), own_state()
    if run is None or own is None:
        return None
    with get_client(sync_client=True) as client:
        states = sorted(client.read_flow_run_states(run), key=lambda each: each.timestamp)
    before = list(itertools.takewhile(lambda each: each.id != own, states))
    return before[-1] if before and before[-1].is_final() else None


def own_id() -> UUID | None:
    """The id of the flow run that this is; None without a server."""
    return UUID(flow_run.id) if flow_run.id else None


class Vigil:
    """`stopped` is set, once, with a reason. Start with `watching()`, in the main thread."""

    def __init__(self, flow_run: UUID | None) -> None:
        self.stopped = threading.Event()
        self.reason: Reason = ""
        self.message = ""  # of whoever cancelled
        self._flow_run = flow_run
        self._own_state = own_state()
        self._parent = int(os.environ.get(WORKER) or os.getppid())  # a worker may have gone while this was imported
        self._over = threading.Event()

    def _beat(self) -> None:
        """Say to the server's automations that this run lives, by the server's clock and until its last moment."""
        resource = {"prefect.resource.id": f"prefect.flow-run.{self._flow_run}"}
        tag = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
        while self.reason != "replaced":
            now = server_now(os.environ.get("PREFECT_API_URL", ""))
            emit_event(HEARTBEAT, resource, occurred=now, related=[tag])
            if self._over.wait(HEARTBEAT_S):
                return

    @contextlib.contextmanager
    def watching(self, on_stop: Callable[[], None] = lambda: None) -> Iterator[Vigil]:
        """Watch during the body; signals are heard too."""

        def hear(number: int, frame: FrameType | None) -> None:
            self._stop("terminated")
            on_stop()

        def look() -> None:
            while not self._over.wait(ASK_EVERY_S / 2):
                self._look()
                if self.stopped.is_set():
                    on_stop()
                    return

        Console.on_broken_pipe = _carry_on  # for good: Prefect's engine says a word after us
        former: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            former = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
        threading.Thread(target=look, name="vigil", daemon=True).start()
        end_after_parent(self._parent)
        if self._flow_run is not None:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            yield self
        finally:
            self._over.set()
            for number, handler in former.items():
                signal.signal(number, handler)

    def verdict(self) -> Reason:
        """Why the run stopped: what its server says of it counts for more than a signal, or that its worker is gone.

        A worker tells a run by SIGTERM, too, that it is being cancelled; and whoever has lost its worker may have been
        cancelled or started again since.
        """
        if self.reason in ("terminated", "orphaned") and (state := self._ask()) is not None:
            self._heed(state)
        return self.reason

    def leave_if_replaced(self) -> None:
        """End this process without a word when another one has its run: what it would say is not about that one.

        Raises:
            Abort: Prefect's engine then exits with 0 and sets no state.
        """
        if self.verdict() == "replaced":
            raise Abort(WORDS["replaced"])

    def _look(self) -> None:
        if os.getppid() != self._parent:
            self._stop("orphaned")
            return
        if (state := self._ask()) is not None:
            self._heed(state)

    def _heed(self, state: State[Any]) -> None:
        """Stop for what the server says, whatever else there is to stop for."""
        if state.is_cancelling() or state.is_cancelled():
            self.reason, self.message = "cancelled", state.message or ""
        elif not self._ours(state):
            self.reason = "replaced"
        else:
            return
        self.stopped.set()

    def _ours(self, state: State[Any]) -> bool:
        """Whether the run is as we set it: RUNNING, by us. A run that was declared dead is started again as itself."""
        return state.is_running() and self._own_state in (None, state.id)

    def _ask(self) -> State[Any] | None:
        """This run's state; None when the server does not answer, which says nothing about the run."""
        if self._flow_run is None:
            return None
        try:
            with get_client(sync_client=True) as client:
                return client.read_flow_run(self._flow_run).state
        except (httpx.HTTPError, PrefectException, OSError):
            return None

    def _stop(self, reason: Reason) -> None:
        if not self.stopped.is_set():
            self.reason = reason
            self.stopped.set()
