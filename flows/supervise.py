"""A flow that a worker runs, from its first line to its state: who watches it, what its log says, what it ends as."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed

from artifacts.errors import LeaseCancelled, StoreError
from flows.blocks import use
from flows.launch import Interrupted, StageFailed
from flows.naming import with_reason
from flows.pipeline import conduct, lead_here
from flows.prepare import Prepared, Request
from flows.remote_stage import Progress, home
from flows.session import Event, Session
from flows.show import describe
from flows.vigil import WORDS, Vigil, own_id
from stages.contract import StageError

REVIVALS = 5  # times that the automation of `deploy` may start a crashed run again
BAR_AFTER_S = 2.0  # a stage beside the flow gets a bar on the page if it takes longer
GRACE_S = 7.0  # of a stage beside the flow: cancelling frees the machine within 15 s

Conduct = Callable[[Prepared], Mapping[str, Any]]


class Unchanged(Exception):
    """A run that only watches has nothing to do."""


def supervised(
    work: Callable[[Conduct], Any],
    store: str,
    credentials: str,
    say: Callable[[Mapping[str, Any]], str] = lambda result: "",
) -> Any:
    """Open the way to `store` with the block `credentials`, and do `work`, which conducts one or several runs.

    Cancelling, a lost worker and SIGTERM end it as what they are; a wrong request ends as the rule that it broke,
    without a traceback. `say` puts a result into the state's message.
    """
    # One line per step is ours; Prefect would add another, and send it to the server.
    logging.getLogger("prefect.task_runs").setLevel(logging.WARNING)
    if (flow_run.run_count or 1) > REVIVALS + 1 and (crashed := crashes()) > REVIVALS:
        return Failed(message=f"this run has crashed {crashed} times and is not revived again; look at its logs")
    os.chdir(home())
    vigil = Vigil(own_id())
    under_way: list[Session] = []

    def stop() -> None:
        for session in under_way:
            session.cancel.set()

    def one(prepared: Prepared) -> Mapping[str, Any]:
        session = prepared.session
        under_way[:] = [session]
        session.handed_over = lambda: vigil.verdict() in ("terminated", "orphaned", "replaced")
        if vigil.stopped.is_set():
            session.cancel.set()
        session.run.note(flow_run=flow_run.id)
        lead_here(session)
        _tag([session.recipe, session.scale, f"seed-{session.seed}"])
        ended = conduct(prepared)
        if isinstance(ended, State):
            raise Interrupted(ended.message or "the run was stopped")
        return ended

    try:
        use(store, credentials)
        with vigil.watching(stop):
            result = work(one)
        return Completed(message=say(result) or None, data=result)
    except (Interrupted, LeaseCancelled) as stopped:
        vigil.leave_if_replaced()
        reason = vigil.verdict()
        if reason in ("", "cancelled"):
            return Cancelled(message=vigil.message or str(stopped))
        return Crashed(message=WORDS[reason])
    except Unchanged as nothing:
        return Completed(name="Unchanged", message=str(nothing))
    except (StageError, StageFailed, StoreError) as error:
        return _broken(str(error))


def _broken(rule: str) -> State[Any]:
    """The end of a run that broke a rule: its name in lists says which one, and no traceback of Prefect's follows."""
    logging.getLogger("prefect.flow_runs").addFilter(lambda line: not line.getMessage().startswith(_ENGINE))
    own = own_id()
    if own is not None:
        with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
            client.update_flow_run(own, name=with_reason(str(flow_run.name), rule))
    return Failed(message=rule)


_ENGINE = "Engine execution exited with unexpected exception"  # Prefect 3.8 says so of each flow that returns Failed


def request(recipe: str, scale: str, overrides: list[str] | None, store: str, pool: str, **more: Any) -> Request:
    """A request of a form."""
    lines = tuple(line.strip() for line in overrides or () if line.strip())
    return Request(recipe=recipe, scale=scale, overrides=lines, store=store, pool=pool, grace_s=GRACE_S, **more)


def crashes() -> int:
    """How often this run has crashed since it last ended otherwise: after that, only a person starts it again."""
    own = own_id()
    if own is None:
        return 0
    count = 0
    with get_client(sync_client=True) as client:
        for state in sorted(client.read_flow_run_states(own), key=lambda each: each.timestamp):
            count = count + 1 if state.is_crashed() else 0 if state.is_final() else count
    return count


def scheduled_for() -> str:
    """The time that this run was first scheduled for, which stays when it is revived: what a true repeat is called."""
    own = own_id()
    if own is None:
        raise StageError("a repeat is named by the time that it was scheduled for; this run has no server; drop fresh")
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(own)
    times = sorted(each.state_details.scheduled_time for each in states if each.state_details.scheduled_time)
    if not times:
        raise StageError("a repeat is named by the time that it was scheduled for; this run was not scheduled")
    return times[0].isoformat(timespec="seconds")


class LogView:
    """Events as log lines of the flow run, and a bar for each stage that takes a while beside the flow."""

    def __init__(self) -> None:
        self._log = get_run_logger()
        self._started_s: dict[str, float] = {}
        self._bars: dict[str, Progress] = {}

    def __enter__(self) -> LogView:
        return self

    def __exit__(self, *ended: object) -> None:
        return

    def __call__(self, event: Event) -> None:
        """Show one event; called in the thread of its step, so that a bar is its task's."""
        if event.kind == "progress":
            self._progress(event)
            return
        if event.kind == "start":
            self._started_s[event.label] = time.monotonic()
        level = {"failed": logging.ERROR, "warned": logging.WARNING}.get(event.kind, logging.INFO)
        text = " ".join(describe(event).split()) if event.kind == "done" else describe(event)  # no columns in a log
        self._log.log(level, "%s: %s", event.label, text)
        if event.kind in ("done", "failed") and (bar := self._bars.pop(event.label, None)) is not None:
            bar.end({"outcome": "done"} if event.kind == "done" else {"error": "failed"})

    def _progress(self, event: Event) -> None:
        now_s = time.monotonic()
        if event.progress is None or now_s - self._started_s.get(event.label, now_s) < BAR_AFTER_S:
            return
        if event.label not in self._bars:
            self._bars[event.label] = Progress(event.label, self._log)
        self._bars[event.label].note({"kind": event.kind, "text": "", "progress": asdict(event.progress)})
        self._bars[event.label].show(changed=True)


@contextmanager
def named_recipe(name: str, toml: str) -> Iterator[str]:
    """What `load_recipe` takes: the name, or a file with the text. Its own name is the file's."""
    if not toml.strip():
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{own_name(toml) or 'form'}.toml"
        path.write_text(toml, encoding="utf-8")
        try:
            yield str(path)
        except StageError as error:  # nobody but us knows of the file
            said = str(error).replace(str(path), "the text").replace(f"{folder}/", "")
            raise StageError(said) from error


def own_name(toml: str) -> str:
    """The name that a recipe's text gives itself; "" if none."""
    try:
        name = tomllib.loads(toml).get("name", "")
    except tomllib.TOMLDecodeError:
        return ""
    return name if isinstance(name, str) and "/" not in name else ""


def _tag(tags: list[str]) -> None:
    """Tags of this run, for the page's filters."""
    own = own_id()
    if own is None:
        return
    try:
        with get_client(sync_client=True) as client:
            there = client.read_flow_run(own).tags
            client.update_flow_run(own, tags=sorted({*there, *tags}))
    except (httpx.HTTPError, PrefectException):
        return  # for the eye only
