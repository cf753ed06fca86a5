"""The small print of sending a stage: what its process imports, what the server refuses at first, what its log says."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from flows import deployed_stage, deployments, remote_dispatch, remote_stage
from flows.deploy import Plan
from flows.deploy import deployments as planned

PARENT = UUID(int=7)


class Server:
    """Refuses a parent that it has not recorded yet, as often as it is told to; it says so `silent` times if asked."""

    def __init__(self, refusals: int, status: int = 409, silent: int = 0) -> None:
        self.refusals, self.status, self.silent = refusals, status, silent
        self.parents: list[UUID | None] = []

    def read_task_run(self, task: UUID) -> UUID:
        self.silent -= 1
        if self.silent >= 0:
            raise ObjectNotFound(http_exc=Exception("not yet"))
        return task

    def create_flow_run_from_deployment(
        self, deployment: UUID, parent_task_run_id: UUID | None = None, **run: Any
    ) -> str:
        self.parents.append(parent_task_run_id)
        if parent_task_run_id is not None and len(self.parents) <= self.refusals:
            request = httpx.Request("POST", "http://server")
            response = httpx.Response(self.status, request=request, text="unique or foreign key constraint")
            raise PrefectHTTPStatusError.from_httpx_error(
                httpx.HTTPStatusError("no", request=request, response=response)
            )
        return run["name"]


@pytest.fixture(autouse=True)
def inside_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(task_run=SimpleNamespace(id=PARENT))
    monkeypatch.setattr(remote_dispatch, "TaskRunContext", SimpleNamespace(get=lambda: context))
    monkeypatch.setattr(remote_dispatch, "RECORD_POLL_S", 0.001)


def create(server: Server) -> Any:
    client: Any = server
    return remote_dispatch._create_below_task(client, uuid4(), name="train")


def test_a_stage_is_sent_again_until_the_server_knows_the_task_that_sends_it():
    server = Server(refusals=3)
    assert create(server) == "train"
    assert server.parents == [PARENT] * 4


def test_a_server_that_does_not_know_the_task_yet_is_not_made_to_refuse_it():
    server = Server(refusals=0, silent=3)
    assert create(server) == "train"
    assert server.parents == [PARENT]


def test_a_task_that_the_server_never_hears_of_sends_its_stage_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_dispatch, "RECORD_LIMIT_S", 0.02)
    server = Server(refusals=10**9)
    assert create(server) == "train"
    assert server.parents[0] == PARENT
    assert server.parents[-1] is None


def test_any_other_refusal_is_an_error_at_once():
    server = Server(refusals=1, status=422)
    with pytest.raises(PrefectHTTPStatusError):
        create(server)
    assert len(server.parents) == 1


def test_the_process_of_a_stage_waits_for_nothing_that_only_drives_or_reports_runs():
    code = "import json, sys; import flows.deployed_stage; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "flows.remote_stage" in loaded
    assert not loaded & {"flows.pipeline", "flows.seeds", "flows.sweep", "flows.doctor", "scipy", "matplotlib", "torch"}


def test_every_deployment_names_a_flow_that_a_worker_finds():
    found = {}
    for each in planned(Plan("store")):
        module, _, name = each.entrypoint.rpartition(".")
        flow = getattr({"flows.deployments": deployments, "flows.deployed_stage": deployed_stage}[module], name)
        found[each.flow] = flow.name
    assert found == {name: name for name in ("score", "seeds", "sweep", "stage")}


def test_the_first_word_of_a_stage_is_a_line_at_once_and_the_next_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(remote_stage.Progress, "_write", lambda self: None)
    log = logging.getLogger("of-a-stage")
    progress = remote_stage.Progress("train", log)

    def step(done: int) -> dict[str, Any]:
        state = {"done": done, "total": 30, "unit": "steps", "rate": None, "eta_s": None, "metrics": {}}
        return {"kind": "progress", "text": "", "progress": state}

    with caplog.at_level(logging.INFO, logger=log.name):
        for event in ({"kind": "start", "text": ""}, step(1), step(2), step(3)):
            progress.note(event)
            progress.show(changed=True)
    assert caplog.messages == ["train: start", "train: 1/30 steps"]
