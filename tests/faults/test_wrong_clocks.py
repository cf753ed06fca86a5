"""A machine's clock is two hours off; and runs that a schedule starts, which are named by a clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, wait_for
from weather import Attempts, Gate, all_sound, changed, result, small_recipe, undisturbed
from wrongclock import can_shift, wrong_clock

from artifacts.errors import LeaseTimeout
from artifacts.store import Store

pytestmark = pytest.mark.slow

HOURS = 3600
NEAR_S = 600.0  # a busy machine's own delays stay far below the two hours


@pytest.fixture
def recipe(lab: Lab) -> str:
    """A small recipe as text; its documents lie on the submitter's machine."""
    return small_recipe(lab)


@pytest.fixture(autouse=True)
def before(lab: Lab) -> Iterator[set[str]]:
    """Runs that were there. Those that come now are named by a wrong clock, and may not be anybody's newest."""
    store = Store.open(lab.store)
    before = {run["id"] for run in store.list_runs()}
    yield before
    for run in Store.open(lab.store).list_runs():
        if run["id"] not in before:
            store.remove_run(run["id"])


def heartbeats(lab: Lab, run: str) -> list[dict[str, Any]]:
    """What a run has said to be alive by."""
    wanted = {"event": {"name": ["fairway.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    return lab.post("events/filter", filter=wanted)["events"]


def seconds_from_now(moment: str) -> float:
    """How far an ISO moment is from now, by the clock that the server and this test have."""
    return abs((datetime.fromisoformat(moment.replace("Z", "+00:00")) - datetime.now(UTC)).total_seconds())


@pytest.mark.parametrize(("worker_h", "submitter_h"), [(-2, 2), (2, -2)])
def test_two_hours_between_all_clocks_change_nothing(
    lab: Lab, recipe: str, tmp_path: Path, before: set[str], worker_h: int, submitter_h: int
):
    attempts = Attempts(lab)
    with (
        changed(lab.gpu, "gpu", 1, **wrong_clock(tmp_path, worker_h * HOURS)),
        changed(lab.submitter, "cpu", 0, **wrong_clock(tmp_path, submitter_h * HOURS)),
        Gate(lab.submitter.tree, "train", tmp_path) as train,
    ):
        run = lab.score(toml=recipe, scale="smoke")
        train.wait()  # it was taken at once: neither sent for later nor looked for earlier
        sent = attempts.all()[0]
        for each in (run, sent["id"]):
            found = wait_for(lambda each=each: heartbeats(lab, each), "a heartbeat of a run whose clock is wrong")
            assert all(seconds_from_now(beat["occurred"]) < NEAR_S for beat in found)
        # A living owner's lease is not for the taking, whatever the clocks say; long enough for the automations too.
        with (
            pytest.raises(LeaseTimeout),
            Store.open(lab.store).lease(sent["parameters"]["key"], timeout_s=12.0),
        ):
            raise AssertionError("two workers had one lease")
        assert (lab.state(run), attempts.states()) == ("RUNNING", ["RUNNING"])
        bars = lab.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [sent["id"]]}})
        shown = [(bar["description"], round(bar["data"])) for bar in bars if bar["key"] == "fairway-progress"]
        assert [("loss" in said, percent) for said, percent in shown] == [(True, 11)]  # one step of nine
        train.open()
        assert lab.ended(run)["type"] == "COMPLETED"
        assert attempts.states() == ["COMPLETED"]
        assert train.passed == 1
        assert result(lab, lab.document(before)) == undisturbed(lab, recipe)  # its id is of the submitter's clock
        record = Store.open(lab.store).get("train", sent["parameters"]["key"])
        assert record is not None
        assert 12 < record.provenance["seconds"] < HOURS
    all_sound(lab.store)


def test_a_schedule_starts_its_own_run_at_its_time_which_names_the_repeat(lab: Lab, recipe: str, tmp_path: Path):
    (tmp_path / "toy.toml").write_text(recipe, encoding="utf-8")
    attempts = Attempts(lab)
    # The harder case, where a compiler can make it: a worker that by its own clock is two hours late.
    variables = wrong_clock(tmp_path, 2 * HOURS) if can_shift() else {}
    words = ("schedule", "seeds", str(tmp_path / "toy.toml"), "--scale", "smoke", "--fresh", "--cron", "* * * * *")
    with changed(lab.submitter, "cpu", 0, **variables):
        made = lab.submitter.fairway(*words, "--seeds", "42", "--name", "each-minute")
        assert made == {"schedule": "each-minute"}
        try:
            train = wait_for(attempts.all, "the schedule's own run has sent its training")[0]
        finally:
            lab.submitter.fairway("schedule", "rm", "each-minute")
        seeds = flow_of(lab, train)
        assert seeds["auto_scheduled"]
        due = datetime.fromisoformat(seeds["expected_start_time"].replace("Z", "+00:00"))
        assert (due.second, due.microsecond) == (0, 0)
        began = datetime.fromisoformat(seeds["start_time"].replace("Z", "+00:00"))
        assert abs((began - due).total_seconds()) < NEAR_S  # what its clock is wrong by is known to about a second
        assert datetime.fromisoformat(train["parameters"]["components"]["repeat"]) == due
        assert lab.ended(seeds["id"])["type"] == "COMPLETED"
        assert attempts.states() == ["COMPLETED"]


def flow_of(lab: Lab, stage: dict[str, Any]) -> dict[str, Any]:
    """The run that sent a stage."""
    task = lab.http.get(f"task_runs/{stage['parent_task_run_id']}").json()
    return lab.run(task["flow_run_id"])
