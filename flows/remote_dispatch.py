"""The submitter's side: send a step to a pool, wait for it, notice when whoever runs it is gone, send it again.

A key is computed once however many runs ask for it: Prefect creates a run only if there is none with its idempotency
key, and whoever comes second waits for the first one's. The wait holds nothing that the stage needs: submitters and
stages are in different pools. The store says what the result is; Prefect's run only says that there is one.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact, FlowRun, State
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed, Scheduled

from artifacts.record import Record
from flows.clock import server_now
from flows.identity import Components
from flows.launch import Interrupted, StageFailed
from flows.naming import run_title
from flows.remote import assign, publish_source
from flows.remote_stage import LOG
from flows.river import Step
from flows.session import Event, Session
from flows.signs import COUNT, START_LIMIT_S, STARTING
from stages.contract import StageError

STAGE_FLOW = "stage"
POLL_S = 0.5
RECORD_LIMIT_S = 10.0  # for the server to record a task that has begun; and it is asked this often:
RECORD_POLL_S = 0.1
LOOK_FOR_LIFE_EVERY_S = 5.0
SILENCE_S = 60.0  # a stage that says nothing for so long is dead; it or its worker speaks every ten seconds
STOP_LIMIT_S = 20.0
LOST_LIMIT = 3  # machines that may be lost under one step
UNANSWERED_LIMIT_S = 600.0  # a server that is away for longer is not coming back


class Pool:
    """A Prefect work pool that runs accelerated stages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._sources: dict[str, str] = {}
        self._lock = threading.Lock()

    def takes(self, step: Step) -> bool:
        """Steps whose device is requested go to the pool; the rest stays where the flow runs."""
        return step.device is not None

    def check(self) -> None:
        """StageError if no stage can be sent: refused before anything runs."""
        with _client() as client:
            self._find(client)

    def make(self, step: Step, key: str, components: Components, session: Session) -> tuple[Record, bool, str]:
        """The step's record, made by the pool; whether it was made now; and a note such as a conflict.

        Raises:
            StageFailed: the stage failed there, or its machines were lost too often.
            Interrupted: this run or the stage's was cancelled.
        """
        with self._lock:  # the source of a stage is published once in a run
            if step.stage not in self._sources:
                self._sources[step.stage] = publish_source(step.stage, session)
        assignment = assign(step, key, components, session, self._sources[step.stage]).to_json()
        lost, attempt = 0, 0
        while True:
            with _client() as client:
                run, ours = self._create(client, assignment, attempt, session)
                attempt = run_attempt(run) + 1
                with _counted(client, run, step, session if ours else None):
                    state = self._wait(client, run, step, session)
            if state.is_completed():
                record = session.find(step, components)
                if record is None:
                    raise StageFailed(step.stage, "crash", f"{step.label} ended without a record", _page(run))
                return record, state.name != "Cached" and ours, _note(step, state)
            if state.is_failed():
                raise StageFailed(step.stage, _kind(state), state.message or "it left no message", _page(run))
            if state.is_cancelled() and not _cancelled_by_another(state, session):
                raise Interrupted(f"{step.label} was cancelled in the pool {self.name}: {state.message or 'by hand'}")
            if state.is_crashed():
                lost += 1
                session.tell(Event("note", step.label, f"lost in the pool {self.name}: {state.message}; sent again"))
            if lost > LOST_LIMIT:
                text = f"{step.label} was lost {lost} times in the pool {self.name}; last: {state.message}"
                raise StageFailed(step.stage, "crash", text, _page(run))

    def _find(self, client: SyncPrefectClient) -> Any:
        """The deployment as it is now: under a run of hours somebody may deploy another store."""
        try:
            return client.read_deployment_by_name(f"{STAGE_FLOW}/{self.name}")
        except ObjectNotFound as error:
            raise StageError(
                f"stages go to a pool that `fairway deploy` knows; the server has no deployment "
                f"{STAGE_FLOW}/{self.name}; run `fairway deploy --gpu-pool {self.name}` against it"
            ) from error

    def _create(
        self, client: SyncPrefectClient, assignment: dict[str, Any], attempt: int, session: Session
    ) -> tuple[FlowRun, bool]:
        """The run of the first attempt that has not ended; whether we made it."""
        deployment = self._find(client)
        # What a run does not send is the deployment's: another store's credentials, when this run has none.
        own = {"credentials": ""} if deployment.parameters.get("credentials") else {}
        forced = f"-{session.run.id}" if assignment["forced"] else ""
        place = hashlib.sha256(session.store.url.encode()).hexdigest()[:8]
        label = assignment["stage"] + (f"[{assignment['part']}]" if assignment["part"] else "")
        overrides = session.run.snapshot().get("overrides", ())
        while True:
            run = _create_below_task(
                client,
                deployment.id,
                parameters={**own, **assignment, "attempt": attempt},
                name=f"{label} {run_title(session.recipe, session.scale, session.seed, overrides=overrides)}",
                tags=[assignment["stage"], session.recipe, session.scale, f"seed-{session.seed}"],
                idempotency_key=f"{assignment['key']}-{place}{forced}-{attempt}",
                state=Scheduled(scheduled_time=server_now(str(client.api_url))),  # by our own clock it may be tomorrow
            )
            if run.state is None or not run.state.is_final():
                return run, run.parameters.get("run") == session.run.id or _before_us(client, run)
            attempt += 1

    def _wait(self, client: SyncPrefectClient, run: FlowRun, step: Step, session: Session) -> State[Any]:
        """The state that the run ends in; declares it dead when it is."""
        life = _Life(client, run.id)
        session.run.step(step.stage, step.part, state="running", flow_run=str(run.id), pool=self.name)
        session.tell(Event("note", step.label, f"sent to the pool {self.name} as {run.name} ({run.id})"))
        started = False
        answered_s = time.monotonic()
        while True:
            try:
                seen = client.read_flow_run(run.id)
                state, answered_s = seen.state, time.monotonic()
                if state is not None and state.is_final():
                    return state
                if state is not None and state.is_running() and not started:
                    started = True
                    session.tell(Event("start", step.label))
                if gone := life.gone(seen):
                    return _declare_dead(client, run.id, state, gone)
            except ObjectNotFound as error:
                raise Interrupted(f"{step.label}: its run {run.id} was deleted on the server") from error
            except (httpx.HTTPError, PrefectException) as error:  # the server restarts: nothing is known of the stage
                life.unknown()
                if time.monotonic() - answered_s > UNANSWERED_LIMIT_S:
                    raise StageFailed(
                        step.stage, "crash", f"the Prefect server does not answer: {error}", _page(run)
                    ) from error
            if session.cancel.wait(POLL_S):
                return self._cancel(client, run, session)

    def _cancel(self, client: SyncPrefectClient, run: FlowRun, session: Session) -> State[Any]:
        """Ask the run to stop and wait until it has; it goes on if our own run will be started again and ask for it."""
        if session.handed_over():
            raise Interrupted(f"{run.name} goes on, and whoever takes this run over waits for it")
        message = f"{_CANCELLED_WITH} {session.run.id} was stopped"
        deadline_s = time.monotonic() + STOP_LIMIT_S
        asked = False
        while time.monotonic() < deadline_s:
            try:
                state = client.read_flow_run(run.id).state
                if state is not None and state.is_final():
                    break
                if not asked:
                    _ask_to_end(client, run.id, state, message)
                    asked = True
            except (httpx.HTTPError, PrefectException):
                pass
            time.sleep(POLL_S / 2)
        raise Interrupted(f"{run.name} was stopped")


_CANCELLED_WITH = "cancelled because its run"


class _Life:
    """Signs of life of one run, by our own clock: the server's and the worker's may differ from it."""

    def __init__(self, client: SyncPrefectClient, flow_run: UUID) -> None:
        self._client, self._flow_run = client, flow_run
        self._sign: object = None
        self._since_s = time.monotonic()
        self._looked_s = 0.0

    def unknown(self) -> None:
        """We could not look: silence counts from now."""
        self._since_s = time.monotonic()

    def gone(self, run: FlowRun) -> str:
        """Why whoever runs it must be gone; "" if there was a sign lately, or no worker has taken it yet."""
        state, now_s = run.state, time.monotonic()
        if state is None or state.is_scheduled():
            self._since_s = now_s
            return ""
        if now_s - self._looked_s < LOOK_FOR_LIFE_EVERY_S:
            return ""
        self._looked_s = now_s
        sign = (state.id, run.labels.get(COUNT), self._updated())
        if sign != self._sign:
            self._sign, self._since_s = sign, now_s
        unheard = state.is_pending() and state.name != STARTING  # a worker that does not say that it starts the run
        limit_s = START_LIMIT_S if unheard else SILENCE_S
        return f"no sign of life for {limit_s:.0f} s from whoever ran it" if now_s - self._since_s > limit_s else ""

    def _updated(self) -> object:
        found = _artifacts(self._client, self._flow_run, "fairway-progress")
        return max((str(each.updated) for each in found), default=None)


def _create_below_task(client: SyncPrefectClient, deployment: UUID, **run: Any) -> FlowRun:
    """A run below the task that is running here, so that the page shows it there.

    Prefect's server records tasks from their events, so it may hear of this one after us, and refuses it as a parent
    until then, with a hundred lines in its log: so it is asked first. A run without a parent is better than none: that
    is what it becomes in the end.
    """
    context = TaskRunContext.get()
    parent = None if context is None else context.task_run.id
    deadline_s = time.monotonic() + RECORD_LIMIT_S
    while parent is not None and time.monotonic() < deadline_s:
        try:
            client.read_task_run(parent)
            return client.create_flow_run_from_deployment(deployment, parent_task_run_id=parent, **run)
        except ObjectNotFound:
            time.sleep(RECORD_POLL_S)
        except PrefectHTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
            time.sleep(RECORD_POLL_S)
    return client.create_flow_run_from_deployment(deployment, **run)


def _ask_to_end(client: SyncPrefectClient, flow_run: UUID, state: State[Any] | None, message: str) -> None:
    """End a run that waits; ask the worker of any other one."""
    waits = state is not None and state.is_scheduled()
    if waits:
        client.set_flow_run_state(flow_run, Cancelled(message=message))
        # A worker may have taken it in that moment, and Prefect lets a run that is CANCELLED become RUNNING.
        if not any(each.is_pending() for each in client.read_flow_run_states(flow_run)):
            return
    client.set_flow_run_state(flow_run, Cancelling(message=message), force=waits)


def _declare_dead(client: SyncPrefectClient, flow_run: UUID, state: State[Any] | None, why: str) -> State[Any]:
    """End a run whose machine is gone: as cancelled if somebody had asked for that, or it would be sent again."""
    asked = state is not None and state.is_cancelling()
    ended = Cancelled(message=state.message if state else None) if asked else Crashed(message=why)
    client.set_flow_run_state(flow_run, ended, force=True)
    return client.read_flow_run(flow_run).state or ended


def _before_us(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether an earlier process of this very flow run, which has crashed and was revived, has sent a stage."""
    context = TaskRunContext.get()
    if context is None or run.parent_task_run_id is None:
        return False
    try:
        return client.read_task_run(run.parent_task_run_id).flow_run_id == context.task_run.flow_run_id
    except ObjectNotFound:  # its states reach the server's database later than ours
        return False


@contextmanager
def _counted(client: SyncPrefectClient, run: FlowRun, step: Step, session: Session | None) -> Iterator[None]:
    """Count what an attempt of ours took that leaves no record, by the server's clock: silence was paid for too."""
    try:
        yield
    finally:
        if session is not None:
            with suppress(httpx.HTTPError, PrefectException):
                ended = client.read_flow_run(run.id)
                if not (ended.state and ended.state.is_completed()) and ended.start_time is not None:
                    session.run.step(step.stage, step.part, write=False, **_log_of(client, run))
                    end = ended.end_time or datetime.now(UTC)
                    session.lose(step, max(0.0, (end - ended.start_time).total_seconds()))


def _log_of(client: SyncPrefectClient, run: FlowRun) -> dict[str, str]:
    """{"log": digest} of what a stage without a record has left, so that `fairway runs logs` finds it."""
    found = _artifacts(client, run.id, LOG)
    kept = re.search(r"[0-9a-f]{64}", str(found[-1].data)) if found else None
    return {"log": kept[0]} if kept else {}


def _artifacts(client: SyncPrefectClient, flow_run: UUID, key: str) -> list[Artifact]:
    return client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]), key=ArtifactFilterKey(any_=[key])
        )
    )


def run_attempt(run: FlowRun) -> int:
    """Which attempt at its key a run is."""
    return int(run.parameters.get("attempt", 0))


def _kind(state: State[Any]) -> str:
    return "user" if state.name == "Refused" else "crash"


def _cancelled_by_another(state: State[Any], session: Session) -> bool:
    """Whether the stage was cancelled together with another run that shared it, while ours still wants it."""
    message = state.message or ""
    return message.startswith(_CANCELLED_WITH) and session.run.id not in message


def _note(step: Step, state: State[Any]) -> str:
    if state.name == "Conflict":
        return f"{step.label} gave other bytes than its record; the record stays, the new result is kept as a conflict"
    return ""


def _page(run: FlowRun) -> str:
    return f"Prefect run {run.name} ({run.id})"


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client
