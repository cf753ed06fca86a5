"""Runs that workers carry out: one machine drives, another runs the accelerated stages, S3 is all that they share."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from lab import CANARY, Lab
from toyriver import behaving

from artifacts.backend import open_backend
from artifacts.record import Record
from artifacts.store import Store
from flows.closure import SourceTree

pytestmark = pytest.mark.slow

ACCELERATED = {"train", "quantize", "evaluate", "audit"}


def record(lab: Lab, step: dict[str, Any]) -> Record:
    """The record that a run's document names."""
    found = Store.open(lab.store).get(step["stage"], step["key"])
    assert found is not None
    return found


def logs_of(lab: Lab) -> list[Path]:
    """Logs of stages that ran beside a flow."""
    return list((lab.submitter.folder / "work" / ".fairway" / "logs").rglob("*.log"))


def test_each_stage_runs_where_it_should_with_the_submitters_edited_code(lab: Lab, recipe: str):
    own = lab.submitter.folder / "own.txt"  # what no other test has tokenized
    own.write_text("A text of its own.\n", encoding="utf-8")
    recipe = recipe.replace("text.txt", own.name)
    former = set(logs_of(lab))
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
    assert not ACCELERATED & {path.stem.partition("[")[0] for path in set(logs_of(lab)) - former}

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
    assert ran - {"bundle"} <= {"quantize", "compress", "weigh", "evaluate", "audit"}  # the bundle holds the recipe
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


def test_a_store_that_can_be_nowhere_is_not_deployed(lab: Lab):
    before = lab.http.get("deployments/name/score/score").json()["parameters"]
    command = [sys.executable, "-m", "flows.cli", "deploy", "--store", "s4://bucket/fairway"]
    done = subprocess.run(command, cwd=lab.submitter.folder, env=lab.submitter.environment, capture_output=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert b"s4://" in done.stderr
    assert lab.http.get("deployments/name/score/score").json()["parameters"] == before


def test_the_doctor_of_the_pool_of_runs_does_not_advise_to_send_stages_there(lab: Lab):
    command = [sys.executable, "-m", "flows.cli", "doctor", "--pool", "cpu", "--json"]
    done = subprocess.run(command, cwd=lab.submitter.folder, env=lab.submitter.environment, capture_output=True)
    findings = json.loads(done.stdout)["findings"]  # whether a worker has said that it is there yet is all the same
    deployment = next(each for each in findings if each["name"] == "deployment")
    assert deployment["state"] == "ok"
    assert "score" in deployment["text"]
    assert "--gpu-pool" not in deployment["advice"]


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


@pytest.fixture
def one_run_at_a_time(lab: Lab) -> Iterator[None]:
    """The pool of the runs has one slot."""
    lab.http.patch("work_pools/cpu", json={"concurrency_limit": 1}).raise_for_status()
    yield
    lab.http.patch("work_pools/cpu", json={"concurrency_limit": None}).raise_for_status()


def test_watched_seeds_run_when_something_changed_and_only_then(lab: Lab, recipe: str, one_run_at_a_time: None):
    asked = {"toml": recipe, "scale": "smoke", "seeds": [7, 8], "watch": True}
    first = lab.ended(lab.start("seeds", **asked))
    assert (first["type"], first["name"]) == ("COMPLETED", "Completed"), first
    trained = lab.stages(stage="train")
    assert {run["parameters"]["seed"] for run in trained} >= {7, 8}
    again = lab.start("seeds", **asked)
    assert lab.ended(again)["name"] == "Unchanged"
    assert lab.run(again)["total_run_time"] < 5
    assert len(lab.stages(stage="train")) == len(trained)
    with behaving(lab.submitter.tree, "quantize", 'print("edited once more at", os.environ["HOME"])'):
        changed = lab.ended(lab.start("seeds", **asked))
    assert (changed["type"], changed["name"]) == ("COMPLETED", "Completed")
    assert len(lab.stages(stage="train")) == len(trained)


def test_fresh_seeds_are_true_repeats_named_by_their_scheduled_time(lab: Lab, recipe: str):
    asked = {"toml": recipe, "scale": "smoke", "seeds": [9], "fresh": True}
    runs = [lab.start("seeds", **asked) for _ in range(2) if not time.sleep(1.1)]
    assert [lab.ended(run)["type"] for run in runs] == ["COMPLETED", "COMPLETED"]
    sent = [run["parameters"]["components"] for run in lab.stages(stage="train", seed=9)]
    assert len(sent) == 2
    repeats = [components.pop("repeat") for components in sent]
    assert sent[0] == sent[1]
    asked_at = sorted(lab.run(run)["expected_start_time"][:19] for run in runs)
    assert sorted(repeat[:19] for repeat in repeats) == asked_at
    documents = [run for run in Store.open(lab.store).list_runs() if run["seed"] == 9]
    assert [step["state"] for step in documents[-1]["steps"] if step["stage"] == "tokenize"].count("ran") == 0


def test_a_sweep_runs_every_point_and_shares_what_it_can(lab: Lab, recipe: str):
    asked = {"toml": recipe, "scale": "smoke", "seeds": [11], "grid": ["quantize.matrices.bits=4,5"]}
    assert lab.ended(lab.start("sweep", **asked))["type"] == "COMPLETED"
    assert len(lab.stages(stage="train", seed=11)) == 1
    bits = [run["parameters"]["config"]["matrices"]["bits"] for run in lab.stages(stage="quantize")]
    assert {4, 5} <= set(bits)


def test_a_schedule_carries_its_own_seeds_and_is_replaced_by_its_name(lab: Lab):
    words = ("schedule", "seeds", "quickstart", "--scale", "smoke", "--watch", "--paused", "--cron")
    for cron in ("0 2 * * *", "0 3 * * *"):
        assert lab.submitter.fairway(*words, cron, "--seeds", "1,2") == {"schedule": "quickstart-smoke-watch"}
    listed = lab.submitter.fairway("schedule", "ls")["schedules"]
    assert [(each["cron"], each["seeds"], each["active"]) for each in listed] == [("0 3 * * *", [1, 2], False)]
    elsewhere = ("--store", "s3://other/fairway", "--name", "elsewhere", "--timezone", "Europe/Berlin")
    lab.submitter.fairway(*words, "0 4 * * *", *elsewhere)
    made = {each["slug"]: each for each in lab.http.get("deployments/name/seeds/seeds").json()["schedules"]}
    assert made["elsewhere"]["parameters"]["store"] == "s3://other/fairway"
    assert "store" not in made["quickstart-smoke-watch"]["parameters"]  # the deployment's
    listed = {each["schedule"]: each for each in lab.submitter.fairway("schedule", "ls")["schedules"]}
    assert listed["elsewhere"]["timezone"] == "Europe/Berlin"
    with pytest.raises(AssertionError, match="a pool that is deployed; got 'tpu'"):
        lab.submitter.fairway(*words, "0 5 * * *", "--pool", "tpu")
    lab.submitter.fairway("schedule", "rm", "elsewhere")
    lab.submitter.fairway("schedule", "rm", "quickstart-smoke-watch")
    assert lab.submitter.fairway("schedule", "ls")["schedules"] == []


def test_a_pool_is_examined_by_its_own_worker(lab: Lab):
    findings = {each["name"]: each for each in lab.submitter.fairway("doctor", "--pool", "gpu")["findings"]}
    assert findings["workers"]["text"] == "gpu"
    assert findings["store"]["text"].startswith(lab.store)
    assert str(lab.gpu.folder) in findings["disk"]["text"]


def test_a_busy_server_refuses_no_run(lab: Lab):
    deployment = lab.http.get("deployments/name/stage/gpu").json()["id"]
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}

    def create(number: int) -> httpx.Response:
        return lab.http.post(f"deployments/{deployment}/create_flow_run", json={"state": later})

    with ThreadPoolExecutor(8) as people:
        answers = list(people.map(create, range(48)))
    assert {answer.status_code for answer in answers} == {201}
    for answer in answers:
        lab.http.delete(f"flow_runs/{answer.json()['id']}")


def leaks(folder: Path) -> list[str]:
    """Files below a folder, databases and logs too, that hold the store's secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path.relative_to(folder).as_posix() for path in files if CANARY.encode() in path.read_bytes()]


def test_the_stores_secret_is_found_in_no_file_record_parameter_or_argument(lab: Lab, recipe: str, tmp_path: Path):
    (tmp_path / "planted.log").write_text(f"key={CANARY}", encoding="utf-8")
    assert leaks(tmp_path) == ["planted.log"]  # the search would see it
    assert lab.gpu.environment["AWS_SECRET_ACCESS_KEY"] == CANARY
    failed = lab.start("score", toml=recipe, scale="smoke", overrides=["train.stepz=3"])
    assert lab.ended(failed)["type"] == "FAILED"
    assert lab.ended(lab.score(toml=recipe, scale="smoke", seed=21))["type"] == "COMPLETED"
    assert leaks(lab.gpu.folder.parent) == []  # server, its database and logs, both workers, their caches and scratch
    backend = open_backend(lab.store)
    held = [entry.path for entry in backend.walk("")]
    assert len(held) > 20
    assert [path for path in held if CANARY.encode() in backend.read(path)] == []
    arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in lab.gpu.descendants()]
    assert not any(CANARY.encode() in each for each in arguments)
