"""The Prefect flow: one task per step, a hit shown as `Cached`, and what a person wants to see as Prefect artifacts.

Prefect schedules and displays; the store decides (Prefect's own cache would serve stale and tampered results). Stages
are tasks and not subflows, small values pass between them, and the work itself is done in processes (`launch.py`).
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from artifacts.errors import StoreError
from flows.drive import anything_to_run, drive
from flows.launch import Interrupted
from flows.naming import run_title
from flows.prepare import Prepared, Request, prepare
from flows.present import announce, show_run
from flows.river import Step
from flows.server import OwnServer, ServerFailed
from flows.session import Event, Outcome, Session
from flows.step import hit_or_run
from flows.summary import summarise

_THREADS = 16  # steps that may be looked up or wait at once; processes are bounded by the machine (`slots.py`)
_prepared: ContextVar[Prepared | None] = ContextVar("prepared", default=None)


class _Work:
    """One step to do. Not a collection and not a model, so that Prefect passes it on without looking inside."""

    def __init__(self, step: Step, prepared: Prepared) -> None:
        self._step, self._session = step, prepared.session

    def __call__(self) -> Outcome:
        try:
            return hit_or_run(self._step, self._session)
        except Interrupted:
            raise
        except Exception as error:
            with suppress(StoreError):  # the store itself may be what failed; the cause is what counts
                self._session.run.step(self._step.stage, self._step.part, state="failed", error=str(error))
            self._session.tell(Event("failed", self._step.label, str(error).partition("\n")[0]))
            raise


def _do(label: str, work: _Work) -> Any:
    outcome = work()
    if outcome.state == "cached":
        return Completed(name="Cached", message=outcome.artifact, data=outcome)
    return outcome


@cache
def stage_task(stage: str) -> Task[..., Any]:
    """The Prefect task of a stage. The store decides what is a hit, so Prefect keeps no results."""
    return task(name=stage, task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)(_do)


def run_name() -> str:
    """`quickstart full seed 1337`, for lists of runs."""
    asked = flow_run.parameters
    return run_title(asked["recipe"], asked["scale"], asked["seed"], overrides=asked["overrides"] or ())


@flow(name="fairway", flow_run_name=run_name, persist_result=False, validate_parameters=False)
def fairway(
    recipe: str = "quickstart",
    scale: str = "full",
    seed: int | None = None,
    overrides: list[str] | None = None,
    store: str = ".fairway",
) -> Any:
    """Run a recipe: from documents to a scored archive, running only what the store does not have.

    Args:
        recipe: name of a built-in recipe, or path of a TOML file.
        scale: smoke, one-gpu or full.
        seed: of the training; empty takes the recipe's.
        overrides: such as train.muon.lr=0.02.
        store: path or URL of the store.
    """
    ready = _prepared.get()
    if ready is not None:
        with stop_on_signals(ready):  # inside the flow, so that they take the place of Prefect's
            return conduct(ready)
    request = Request(recipe=recipe, scale=scale, seed=seed, overrides=tuple(overrides or ()), store=store)
    with prepare(request) as ready:  # a worker's run: nobody prepared it
        return conduct(ready)


def conduct(prepared: Prepared) -> dict[str, Any] | State[Any]:
    """Drive the river with Prefect tasks and close the run's document, however it ends."""
    session, request = prepared.session, prepared.request

    def submit(step: Step) -> Any:
        return stage_task(step.stage).submit(step.label, _Work(step, prepared))

    try:
        if request.pool:
            from flows.remote_dispatch import Pool  # a run on one machine does not pay for the import

            pool = Pool(request.pool)
            pool.check()
            session.elsewhere = pool
            lead_here(session)
        outcomes = drive(prepared.loaded.recipe, prepared.outside, session, submit, request.until)
        result = summarise(session, outcomes)
        session.run.finish("completed", scores=result["scores"], bytes=result["bytes"], audit=result["audit"])
        folder = _report_folder(prepared, outcomes)
        result["report"] = _report(session, folder)
        show_run(session, outcomes, result, folder)
        announce(session, outcomes)
    except Interrupted as stopped:
        session.run.finish("cancelled")
        return Cancelled(message=str(stopped))
    except Exception as error:
        with suppress(StoreError):  # written again when the scratch is gone, or by the next run
            session.run.finish("failed", error=str(error))
        raise
    except BaseException:
        session.run.finish("cancelled" if session.cancel.is_set() else "crashed")
        raise
    return result


def lead_here(session: Session) -> None:
    """Let every record that this run makes lead to its page, on a server that stays."""
    own, captured = flow_run.id, session.provenance
    session.provenance = lambda: {**captured(), "flow_run": own}


def _report_folder(prepared: Prepared, outcomes: list[Outcome]) -> Path:
    """Named by the results, so that a cached run finds its report drawn."""
    session = prepared.session
    results = hashlib.sha256("".join(o.record.id for o in outcomes).encode()).hexdigest()
    return prepared.local / "reports" / f"{session.recipe}-{session.scale}-{session.seed}-{results[:12]}"


def _report(session: Session, folder: Path) -> str | None:
    """The path of the report on these results, written unless it is there: drawing takes longer than a cached run."""
    try:
        if not (folder / "index.html").is_file():
            from flows.report import write_report  # draws with matplotlib, half a second to import

            write_report(session.store, session.run.snapshot(), folder)
    except Exception as error:  # noqa: BLE001 - the results are safe; `fairway report` can be asked again
        session.tell(Event("note", "report", f"it could not be written: {error}"))
        return None
    return str(folder / "index.html")


def run(prepared: Prepared) -> dict[str, Any]:
    """Run a prepared request under Prefect: on the server that is configured, else on one of our own.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the document says `cancelled`, and the next run goes on from there.
        StageError, StageFailed, StoreError: see `hit_or_run`.
        ServerFailed: no server is configured and ours did not start.
    """
    session, loaded = prepared.session, prepared.loaded
    configured = get_current_settings().api.url
    updates: dict[Any, Any] = {}
    if not configured:
        server = _own_server()
        try:
            server.wait_until_ready(slow=lambda: session.tell(Event("note", "prefect", _STARTS)))
        except ServerFailed:
            _own_server.cache_clear()  # a notebook may try again
            raise
        updates[PREFECT_API_URL] = server.url
    if not configured or not anything_to_run(loaded.recipe, prepared.outside, session):
        # A heartbeat lets a lasting server find dead runs; its thread costs up to a second at the end of each flow.
        # The setting refuses None in the environment, though None is what turns it off.
        updates[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
    asked = {"recipe": session.recipe, "scale": session.scale, "seed": session.seed, "store": session.store.url}
    token = _prepared.set(prepared)
    try:
        with temporary_settings(updates):
            runner: Any = ThreadPoolTaskRunner(max_workers=_THREADS)  # Prefect's own annotations disagree here
            here = fairway.with_options(task_runner=runner)
            state = here(**asked, overrides=list(prepared.request.overrides), return_state=True)
    finally:
        _prepared.reset(token)
    if state.is_cancelled():
        raise Interrupted(state.message or "the run was cancelled")
    return state.result(_sync=True)  # in a notebook an event loop runs, in which Prefect would hand out a coroutine


_STARTS = "its server for this run starts; the first time on a machine takes longest"


@cache
def _own_server() -> OwnServer:
    server = OwnServer(get_current_settings().to_environment_variables(exclude_unset=True))
    server.start()
    return server


@contextmanager
def stop_on_signals(prepared: Prepared) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: stages write a checkpoint and stop. Second: they are ended at once."""
    session = prepared.session

    def stop(number: int, frame: FrameType | None) -> None:
        if session.cancel.is_set():
            session.kill.set()
        session.cancel.set()
        session.tell(Event("note", "stopping", "stages write a checkpoint and stop; once more ends them at once"))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
