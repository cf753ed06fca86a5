"""Leases that the dead have left, and those of the living: who takes them over, when, and who does not."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from lab import LIMIT_S as PATIENCE_S
from lab import Lab, wait_for
from toyriver import make_tree
from toyrun import launch_here, request, run_in_one_thread, write_recipe
from weather import Attempts, Gate, result, small_recipe, undisturbed

import flows.step
from artifacts.backend import open_backend
from artifacts.store import Store
from flows.session import Event

LIMIT_S = 3.0
LIVING_LIMIT_S = 12.0  # a busy machine's beats come late, too
VANISHED = "process 4242 on vanished"


def leave(store: str, key: str) -> None:
    """The claim and the last beat of a host that vanished while it made `key`."""
    backend = open_backend(store)
    since = "2026-01-01T00:00:00+00:00"
    claim = {"host": "vanished", "pid": 4242, "since": since, "token": "0" * 16, "time_limit_s": LIMIT_S}
    backend.write(f"leases/{key}/00000007.json", json.dumps(claim).encode())
    backend.write(f"leases/{key}/00000007.beat", json.dumps({"beat": 3, "released": False}).encode())


@pytest.mark.parametrize("place", [pytest.param("s3", marks=pytest.mark.slow), "file"])
def test_a_run_takes_over_what_a_vanished_host_held_and_only_after_its_time(
    place: str, request_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flows.step, "launch", launch_here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    tree = make_tree(tmp_path / "tree")
    whole = run_in_one_thread(request(tmp_path, tree, store=str(tmp_path / "whole")))
    store = request_s3 if place == "s3" else str(tmp_path / "store")
    trained = next(outcome.record.key for outcome in whole if outcome.step.stage == "train")
    if place == "s3":
        leave(store, trained)
    else:  # on one machine the kernel lets go of a lock; its file stays
        (tmp_path / "store" / "leases").mkdir(parents=True)
        (tmp_path / "store" / "leases" / f"{trained}.lock").write_text('{"host": "vanished", "pid": 4242}')
    told: list[Event] = []
    began_s = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("toyrun.prepare", listening(told))
        again = run_in_one_thread(request(tmp_path, tree, store=store))
    waited = [event.text for event in told if event.kind == "note" and "waits for" in event.text]
    if place == "s3":
        assert waited == [f"waits for {VANISHED} (since 2026-01-01T00:00:00+00:00)"]
        assert time.monotonic() - began_s > LIMIT_S
    else:
        assert waited == []
    assert {outcome.state for outcome in again} == {"ran"}
    made = [[(o.record.key, o.record.files) for o in run if o.step.stage != "audit"] for run in (whole, again)]
    assert made[0] == made[1]
    assert Store.open(store).verify() == []
    assert not list(open_backend(store).walk("conflicts"))


def listening(told: list[Event]):
    """`prepare`, with a listener."""
    import toyrun

    real = toyrun.prepare
    return lambda asked: real(asked, told.append)


@pytest.fixture
def request_s3(request: pytest.FixtureRequest) -> str:
    """A store on S3, where the test asks for one."""
    return request.getfixturevalue("s3_store") if "s3" in request.node.name else ""


@pytest.mark.slow
def test_a_stage_in_the_pool_waits_for_the_living_and_takes_over_from_the_dead(lab: Lab, tmp_path: Path):
    recipe = small_recipe(lab)
    attempts = Attempts(lab)
    with Gate(lab.submitter.tree, "train", tmp_path) as train:
        train.open()
        expected = undisturbed(lab, recipe)
        own = train.passed  # of the run that nobody disturbs
        key = expected["train", ""][0]
        hold, held = threading.Event(), threading.Event()

        def live() -> None:
            with Store.open(lab.store).lease(key, time_limit_s=LIVING_LIMIT_S):
                held.set()
                hold.wait(2 * PATIENCE_S)

        owner = threading.Thread(target=live)
        owner.start()
        try:
            assert held.wait(PATIENCE_S)
            run = lab.score(toml=recipe, scale="smoke")
            wait_for(lambda: attempts.states() == ["RUNNING"], "the training's run has begun")
            wait_for(lambda: "waits for process" in bar(lab, attempts.all()[0]["id"]), "it says whom it waits for")
            time.sleep(1.5 * LIVING_LIMIT_S)
            assert (attempts.states(), train.passed) == (["RUNNING"], own)
            leave(lab.store, key)  # the owner's claim is followed by that of a host that vanishes at once
        finally:
            hold.set()
            owner.join()
        wait_for(lambda: VANISHED in bar(lab, attempts.all()[0]["id"]) or train.passed > own, "it waits for that one")
        assert lab.ended(run)["type"] == "COMPLETED"
        assert attempts.states() == ["COMPLETED"]
        assert train.passed == own + 1
        assert result(lab, lab.document()) == expected
    assert not [entry for entry in open_backend(lab.store).walk("conflicts") if key in entry.path]


def bar(lab: Lab, run: str) -> str:
    """What a stage's run shows on its page."""
    found = lab.post(
        "artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}, "key": {"any_": ["fairway-progress"]}}
    )
    return found[0]["description"] if found else ""
