"""Runs that workers carry out: one machine drives, another runs the accelerated stages, S3 is all that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import Lab

from artifacts.record import Record
from artifacts.store import Store
from flows.closure import SourceTree

pytestmark = pytest.mark.slow

ACCELERATED = {"train", "quantize", "evaluate"}


def record(lab: Lab, step: dict[str, Any]) -> Record:
    """The record that a run's document names."""
    found = Store.open(lab.store).get(step["stage"], step["key"])
    assert found is not None
    return found


def test_each_stage_runs_where_it_should_with_the_submitters_edited_code(lab: Lab, recipe: str):
    state = lab.ended(lab.score(toml=recipe, scale="smoke"))
    assert state["type"] == "COMPLETED", state
    store = Store.open(lab.store)
    assert store.verify() == []
    steps = lab.document()["steps"]
    assert {step["state"] for step in steps} == {"ran"}
    assert {step["stage"] for step in steps if "flow_run" in step} == ACCELERATED
    submitted = SourceTree(lab.submitter.tree)
    for step in steps:
        made = record(lab, step)
        assert made.components["code"] == submitted.stage(step["stage"]).digests
        if step["stage"] in ACCELERATED:
            assert store.read_object(made.provenance["log"]).decode() == f"edited code at {lab.gpu.folder}\n"
            assert lab.run(step["flow_run"])["state"]["type"] == "COMPLETED"
        else:
            assert "log" not in made.provenance
    logs = (lab.submitter.folder / "work" / ".fairway" / "logs").rglob("*.log")
    assert not ACCELERATED & {path.stem.partition("[")[0] for path in logs}

    # Again: no stage process, no run of a stage.
    before = len(lab.stages())
    assert lab.ended(lab.score(toml=recipe, scale="smoke"))["type"] == "COMPLETED"
    again = lab.document()
    assert {step["state"] for step in again["steps"]} == {"cached"}
    assert len(lab.stages()) == before

    # Another quantiser: from quantize on.
    changed = lab.score(toml=recipe, scale="smoke", overrides=["quantize.matrices.bits=5"])
    assert lab.ended(changed)["type"] == "COMPLETED"
    ran = {step["stage"] for step in lab.document()["steps"] if step["state"] == "ran"}
    assert ran - {"bundle"} <= {"quantize", "compress", "weigh", "evaluate"}  # the bundle holds the recipe
    assert "quantize" in ran
    assert store.verify() == []


def test_a_wrong_override_fails_before_anything_is_sent_and_names_the_field(lab: Lab, recipe: str):
    before = len(lab.stages())
    run = lab.score(toml=recipe, scale="smoke", overrides=["train.stepz=3"])
    state = lab.ended(run)
    assert state["type"] == "FAILED"
    assert "train.stepz" in state["message"]
    assert "steps" in state["message"]
    assert lab.run(run)["total_run_time"] < 5
    assert len(lab.stages()) == before


@pytest.mark.parametrize(
    "wrong",
    [{"recipe": "nope"}, {"scale": "huge"}, {"seed": -1}, {"seed": "x"}, {"overrides": ["no equals"]}, {"sede": 1}],
)
def test_the_form_refuses_a_wrong_value(lab: Lab, wrong: dict[str, Any]):
    deployment = lab.http.get("deployments/name/score/score").json()["id"]
    answer = lab.http.post(f"deployments/{deployment}/create_flow_run", json={"parameters": wrong})
    assert answer.status_code == 409, answer.text
    assert next(iter(wrong)) in answer.text or "nope" in answer.text or "huge" in answer.text or "-1" in answer.text


def test_deploying_twice_changes_nothing_and_keeps_schedules(lab: Lab):
    first = lab.http.get("deployments/name/score/score").json()
    schedule = {"schedule": {"cron": "0 2 * * *"}, "active": False, "parameters": {"seed": 3}, "slug": "mine"}
    answer = lab.http.post(f"deployments/{first['id']}/schedules", json=[schedule])
    assert answer.status_code == 201, answer.text
    lab.submitter.fairway("deploy", "--store", lab.store, "--prune")
    again = lab.http.get("deployments/name/score/score").json()
    assert again["id"] == first["id"]
    assert again["parameter_openapi_schema"] == first["parameter_openapi_schema"]
    assert [each["slug"] for each in again["schedules"]] == ["mine"]
    automations = lab.post("automations/filter")
    names = [each["name"] for each in automations]
    assert len(names) == len(set(names)) >= 2


def send(lab: Lab, parameters: dict[str, Any]) -> dict[str, Any]:
    """Send a stage by hand; the state that it ends in."""
    deployment = lab.http.get("deployments/name/stage/gpu").json()["id"]
    return lab.ended(lab.post(f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"])


def test_a_worker_refuses_what_does_not_key_to_the_same_value(lab: Lab, recipe: str):
    assert lab.ended(lab.score(toml=recipe, scale="smoke", seed=5))["type"] == "COMPLETED"
    sent = next(run["parameters"] for run in reversed(lab.stages(stage="train")) if run["parameters"]["seed"] == 5)
    before = sorted(Store.open(lab.store).records("train"))
    other_config = send(lab, {**sent, "config": {**sent["config"], "steps": 31}})
    assert (other_config["type"], other_config["name"]) == ("FAILED", "Refused")
    assert '"steps": 31' in other_config["message"]
    libraries = {**sent["components"], "libraries": {"torch": "1.0.0"}}
    other_key = send(lab, {**sent, "components": libraries, "key": "0" * 64})
    assert other_key["name"] == "Refused"
    assert "1.0.0" in other_key["message"]
    shards = {**sent["inputs"]["shards"], "files": sent["inputs"]["shards"]["files"][:1]}
    other_input = send(lab, {**sent, "inputs": {**sent["inputs"], "shards": shards}})
    assert other_input["name"] == "Refused"
    assert "shards" in other_input["message"]
    assert sorted(Store.open(lab.store).records("train")) == before


def test_a_worker_whose_own_checkout_differs_is_a_fact_of_this_lab(lab: Lab):
    """Without this the first test would prove nothing."""
    theirs, ours = SourceTree(lab.gpu.tree), SourceTree(lab.submitter.tree)
    assert all(theirs.stage(stage).digests != ours.stage(stage).digests for stage in ACCELERATED)
    assert not Path(lab.gpu.folder / "text.txt").exists()
