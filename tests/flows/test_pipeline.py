"""The flow under a real Prefect server: states, names, artifacts, cancelling, and what is sent nowhere."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyriver import behave, make_tree
from toyrun import request, write_recipe

from artifacts.store import Store
from flows.launch import Interrupted, StageFailed
from flows.prepare import Prepared, Request, prepare
from flows.server import OwnServer, quiet
from flows.session import Event

quiet()

from prefect.settings import PREFECT_API_URL, PREFECT_HOME, get_current_settings, temporary_settings  # noqa: E402

from flows import pipeline  # noqa: E402


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server with a database of its own for all tests here."""
    home = tmp_path_factory.mktemp("prefect")
    server = OwnServer({"PREFECT_HOME": str(home)})
    server.start()
    server.wait_until_ready()
    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: home}):
        yield server.url
    server.stop()


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    """The toy recipe in a fresh store."""
    write_recipe(tmp_path)
    return request(tmp_path, make_tree(tmp_path / "tree"))


def run(asked: Request, tell=lambda event: None) -> dict[str, Any]:
    with prepare(asked, tell) as prepared:
        return pipeline.run(prepared)


def ask(api: str, path: str, body: dict[str, Any]) -> Any:
    question = urllib.request.Request(
        f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(question) as answer:
        return json.load(answer)


def latest_run(api: str) -> dict[str, Any]:
    return ask(api, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]


def task_states(api: str) -> dict[str, str]:
    """Task run -> state's name, of the latest flow run. They reach the database through events, so wait for them."""
    flow_run = latest_run(api)["id"]
    deadline = time.monotonic() + 120
    while True:
        found = ask(api, "task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        states = {task["name"]: task["state_name"] for task in found}
        if time.monotonic() > deadline or (len(states) == 16 and not {"Pending", "Running"} & set(states.values())):
            return states
        time.sleep(0.1)


def test_steps_are_tasks_and_a_hit_shows_as_cached(api: str, asked: Request):
    result = run(asked)
    assert {stage["state"] for stage in result["stages"]} == {"ran"}
    first = task_states(api)
    assert len(first) == 16
    assert set(first.values()) == {"Completed"}
    assert latest_run(api)["name"] == "toy full seed 1337"
    assert {stage["state"] for stage in run(asked)["stages"]} == {"cached"}
    second = task_states(api)
    assert set(second) == set(first)
    assert set(second.values()) == {"Cached"}


def test_scores_sizes_and_curve_become_artifacts(api: str, asked: Request):
    result = run(asked)
    artifacts = {a["key"]: a for a in ask(api, "artifacts/latest/filter", {})}
    assert {"fairway-bytes", "fairway-lineage", "fairway-scores", "fairway-summary", "fairway-verdict"} == set(
        artifacts
    )
    rows = json.loads(artifacts["fairway-scores"]["data"])
    assert {row["score"]: float(row["BPB"]) for row in rows} == {name: s["bpb"] for name, s in result["scores"].items()}
    assert result["run"] in artifacts["fairway-scores"]["description"]
    assert f"{result['scores']['roundtrip']['bpb']:.5f} BPB" in artifacts["fairway-summary"]["data"]
    assert "![loss](data:image/png;base64," in artifacts["fairway-summary"]["data"]


def test_the_result_is_the_object_that_programs_were_promised(api: str, asked: Request):
    result = json.loads(json.dumps(run(asked)))
    assert list(result) == ["run", "recipe", "scale", "seed", "scores", "audit", "bytes", "stages", "report"]
    assert set(result["scores"]) == {"raw", "roundtrip", "sliding"}
    assert set(result["scores"]["raw"]) == {"bpb", "nats_per_token", "tokens", "bytes", "seconds"}
    assert result["bytes"] == {"code": 10, "model": 20, "total": 30, "cap": 100}
    assert set(result["stages"][0]) == {"stage", "part", "state", "key", "artifact", "seconds"}


def test_a_failed_stage_fails_its_task_and_the_run_with_its_message(api: str, asked: Request):
    behave(asked.source_root, "compress", 'raise StageError("tensors have codes; got none; quantise first")')
    with pytest.raises(StageFailed, match="tensors have codes; got none; quantise first"):
        run(asked)
    flow_run = latest_run(api)
    assert flow_run["state_type"] == "FAILED"
    assert "tensors have codes" in flow_run["state"]["message"]
    (document,) = Store.open(asked.store).list_runs()
    assert document["state"] == "failed"
    assert {s["stage"]: s["state"] for s in document["steps"]}["compress"] == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_run_and_the_next_one_goes_on(api: str, asked: Request, number: signal.Signals):
    behave(asked.source_root, "train", "signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))\ntime.sleep(600)")

    def interrupt(event: Event) -> None:
        if (event.kind, event.label) == ("start", "train"):
            threading.Timer(0.5, os.kill, (os.getpid(), number)).start()

    started = time.monotonic()
    with pytest.raises(Interrupted):
        run(asked, interrupt)
    assert time.monotonic() - started < 300  # the training would have taken longer
    assert latest_run(api)["state_type"] == "CANCELLED"
    (document,) = Store.open(asked.store).list_runs()
    assert document["state"] == "cancelled"
    behave(asked.source_root, "train", "pass")
    states = {s["stage"]: s["state"] for s in run(asked)["stages"]}
    assert (states["corpus"], states["train"]) == ("cached", "ran")


def test_the_heartbeat_beats_only_while_there_is_work(api: str, asked: Request, monkeypatch: pytest.MonkeyPatch):
    """Its thread would add up to a second to every cached run."""
    beats = []
    real = pipeline.conduct

    def conduct(prepared: Prepared):
        beats.append(get_current_settings().flows.heartbeat_frequency)
        return real(prepared)

    monkeypatch.setattr(pipeline, "conduct", conduct)
    run(asked)
    run(asked)
    assert beats[0] is not None
    assert beats[1] is None


def test_signal_handlers_are_put_back(api: str, asked: Request):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(asked)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_flow_run_without_a_prepared_request_prepares_itself(
    api: str, asked: Request, monkeypatch: pytest.MonkeyPatch
):
    """What a Prefect worker does with a deployment: plain parameters, no command line around it."""
    monkeypatch.setattr(pipeline, "prepare", lambda plain: prepare(replace(plain, source_root=asked.source_root)))
    result = pipeline.fairway(recipe=asked.recipe, store=asked.store, seed=5)
    assert result["seed"] == 5
    assert {stage["state"] for stage in result["stages"]} == {"ran"}


def test_parameters_are_few_and_plain():
    properties = pipeline.fairway.parameters.properties
    assert set(properties) == {"recipe", "scale", "seed", "overrides", "store"}
    assert all("description" in each for each in properties.values())
