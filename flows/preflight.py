"""`fairway doctor --pool`: would a stage run there? Asked of the server, and then of a worker itself."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Failed, Scheduled

from artifacts.errors import StoreError
from flows.blocks import use
from flows.clock import ahead_s, server_now, words
from flows.doctor import Finding, devices, disk, packages, python, store_health
from flows.remote_dispatch import STAGE_FLOW
from flows.remote_stage import home
from flows.vigil import TAG
from stages.contract import StageError

LIMIT_S = 180.0
POLL_S = 1.0


def preflight(pool: str) -> list[Finding]:
    """What the server says of a pool, and what one of its workers finds on its machine."""
    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(pool)
        except ObjectNotFound:
            return [Finding("pool", "fail", f"the server has no pool {pool}", f"fairway deploy --gpu-pool {pool}")]
        findings = [
            Finding("pool", "fail" if found.is_paused else "ok", f"{pool}: {found.type}",
                    "resume it on Prefect's page" if found.is_paused else "")
        ]  # fmt: skip
        workers = client.read_workers_for_work_pool(pool)
        online = [each.name for each in workers if str(each.status).upper().endswith("ONLINE")]
        advice = "" if online else f"fairway worker --pool {pool}"
        findings.append(Finding("workers", "ok" if online else "fail", ", ".join(online) or "none is online", advice))
        try:
            deployment = client.read_deployment_by_name(f"{STAGE_FLOW}/{pool}")
        except ObjectNotFound:
            return [*findings, _of_runs(client, pool)]
        findings.append(Finding("deployment", "ok", f"{STAGE_FLOW}/{pool}"))
        return [*findings, *_ask(client, deployment.id)] if online else findings


def _of_runs(client: SyncPrefectClient, pool: str) -> Finding:
    """What a pool without a deployment of stages is for: runs, or nothing yet."""
    here = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    ours = client.read_deployments(
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])), work_pool_filter=here
    )
    if not ours:
        advice = f"fairway deploy --gpu-pool {pool}"
        return Finding("deployment", "fail", f"there is no {STAGE_FLOW}/{pool}", advice)
    names = ", ".join(sorted(each.name for each in ours))
    return Finding("deployment", "ok", f"{names}: runs start here, and their accelerated stages in another pool")


def _ask(client: SyncPrefectClient, deployment: Any) -> list[Finding]:
    """Let a worker examine its machine; it must have a slot free."""
    sys.stderr.write("fairway: asking a worker about its machine; one that is busy answers when its stage is done\n")
    now = Scheduled(scheduled_time=server_now(str(client.api_url)))
    run = client.create_flow_run_from_deployment(
        deployment, parameters={"preflight": True}, name="preflight", state=now
    )
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        state = client.read_flow_run(run.id).state
        if state is not None and state.is_final():
            return _read(state)
        time.sleep(POLL_S)
    client.set_flow_run_state(run.id, Cancelled(message="nobody took it"), force=True)
    text = f"no worker took the question within {LIMIT_S:.0f} s"
    return [Finding("answer", "fail", text, "workers are busy, or cannot start a process; see their logs")]


def _read(state: State[Any]) -> list[Finding]:
    try:
        return [Finding(**each) for each in json.loads(state.message or "")]
    except (ValueError, TypeError):
        return [Finding("answer", "fail", f"{state.name}: {state.message}", "look at the worker's log")]


def clock() -> Finding:
    """This machine's clock against the server's."""
    difference_s = ahead_s(os.environ.get("PREFECT_API_URL", ""))
    if not difference_s:
        return Finding("clock", "ok", "as the server's")
    return Finding("clock", "warn", words(difference_s), "set it: object stores refuse who is 15 minutes off")


def answer(store: str, credentials: str = "") -> State[Any]:
    """A worker's side: what it finds, as the message of its run's state."""
    try:
        use(store, credentials)
        barred = []
    except (StageError, StoreError) as error:
        barred = [Finding("credentials", "fail", str(error), "see docs/deploy.md")]
    machine = [*python(), *packages(), *devices(), *disk(home()), clock()]
    findings = [*machine, *(barred or (store_health(store) if store else []))]
    told = json.dumps([asdict(each) for each in findings if each.name not in ("venv", "environment")])
    return Failed(message=told) if any(each.state == "fail" for each in findings) else Completed(message=told)
