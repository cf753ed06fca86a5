"""A machine has a wrong key to the store or a wrong password of the server: who notices, how soon, in which words."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard import Guard
from lab import CANARY, LIMIT_S, Lab, Machine, free_port
from toyriver import make_tree
from toyrun import write_recipe
from weather import Attempts, Gate, all_sound, changed, result, small_recipe, undisturbed
from wrongclock import can_shift, wrong_clock

from artifacts.remote import PATIENCE_S
from flows.server import QUIET

WRONG = "wrong-5b1f0c9e7d24"


@pytest.fixture
def guard(s3_environment: dict[str, str]) -> Iterator[Guard]:
    """A door before the store that checks signatures."""
    with Guard(s3_environment["AWS_ENDPOINT_URL"], s3_environment["AWS_ACCESS_KEY_ID"], CANARY) as guard:
        yield guard


def command(machine_environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of Fairway in an environment."""
    arguments = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(
        arguments, cwd=folder, env=machine_environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.mark.slow
def test_the_right_key_opens_the_guarded_store_and_a_wrong_one_fails_at_once_in_a_run(
    guard: Guard, s3_store: str, tmp_path: Path
):
    write_recipe(tmp_path)
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": guard.url,
        "PYTHONPATH": str(make_tree(tmp_path / "tree")),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    asked = ("run", "toy.toml", "--store", s3_store)
    began_s = time.monotonic()
    for name, value, code in (
        ("AWS_SECRET_ACCESS_KEY", WRONG, "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
    ):
        done = command({**environment, name: value}, tmp_path, *asked)
        assert done.returncode == 1
        assert f"the store {s3_store} must let us read store.json; it refuses the credentials, " in done.stderr
        assert f"this machine's own: {code}, " in done.stderr
        assert WRONG not in done.stdout + done.stderr
    assert time.monotonic() - began_s < PATIENCE_S  # of an outage, for one of the two
    assert set(guard.refused) == {"SignatureDoesNotMatch", "InvalidAccessKeyId"}
    if can_shift():  # S3 lets nobody in whose clock is 15 minutes off
        late = command({**environment, **wrong_clock(tmp_path, -7200)}, tmp_path, *asked)
        assert late.returncode == 1
        assert "RequestTimeTooSkewed" in late.stderr
        assert "differs too much from the store's: set it" in late.stderr
    right = command(environment, tmp_path, *asked)
    assert right.returncode == 0, right.stderr
    all_sound(s3_store)


@pytest.mark.slow
class TestAWrongKeyInTheLab:
    """One machine's key is wrong; the others' are right."""

    @pytest.fixture
    def recipe(self, lab: Lab) -> str:
        return small_recipe(lab)

    @staticmethod
    def wrong(guard: Guard) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": guard.url, "AWS_SECRET_ACCESS_KEY": WRONG}

    def test_deploying_and_submitting_are_refused_before_anything_is_sent(
        self, lab: Lab, recipe: str, guard: Guard, tmp_path: Path
    ):
        (tmp_path / "toy.toml").write_text(recipe, encoding="utf-8")
        environment = {**lab.submitter.environment, **self.wrong(guard)}
        before = lab.http.get("deployments/name/score/score").json()["updated"]
        sent = len(lab.stages())
        for words in (("deploy",), ("run", "toy.toml", "--scale", "smoke", "--pool", "gpu")):
            done = command(environment, tmp_path, *words, "--store", lab.store)
            assert done.returncode == 1, done.stderr
            assert f"the store {lab.store} must let us read store.json; it refuses the credentials" in done.stderr
            assert WRONG not in done.stdout + done.stderr
        assert lab.http.get("deployments/name/score/score").json()["updated"] == before
        assert len(lab.stages()) == sent

    def test_a_machine_that_runs_flows_fails_its_run_with_the_stores_address(self, lab: Lab, recipe: str, guard: Guard):
        with changed(lab.submitter, "cpu", 0, **self.wrong(guard)):
            state = lab.ended(lab.score(toml=recipe, scale="smoke"))
        assert state["type"] == "FAILED"
        assert f"the store {lab.store} must let us read store.json; it refuses the credentials" in state["message"]
        assert "SignatureDoesNotMatch" in state["message"]
        assert WRONG not in state["message"]

    def test_a_worker_with_a_wrong_key_is_named_and_its_stage_is_not_sent_round(
        self, lab: Lab, recipe: str, guard: Guard, tmp_path: Path
    ):
        attempts = Attempts(lab)
        with Gate(lab.submitter.tree, "train", tmp_path) as train:
            train.open()
            with changed(lab.gpu, "gpu", 1, **self.wrong(guard)):
                state = lab.ended(lab.score(toml=recipe, scale="smoke"))
            assert state["type"] == "FAILED"
            assert "worker gpu on " in state["message"]
            assert f"the store {lab.store} must let us " in state["message"]
            assert "SignatureDoesNotMatch" in state["message"]
            assert WRONG not in state["message"]
            assert attempts.states() == ["FAILED"]
            assert train.passed == 0
            assert lab.ended(lab.score(toml=recipe, scale="smoke"))["type"] == "COMPLETED"
            assert attempts.states() == ["FAILED", "COMPLETED"]
            assert result(lab, lab.document()) == undisturbed(lab, recipe)
        all_sound(lab.store)


@pytest.mark.slow
def test_a_wrong_password_of_the_server_is_called_one_by_commands_and_workers(tmp_path: Path):
    port = free_port()
    folder = tmp_path / "up"
    right = {**os.environ, **QUIET, "HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect")}
    right |= {"PREFECT_SERVER_API_AUTH_STRING": "lab:right", "PREFECT_API_AUTH_STRING": "lab:right"}
    up = ("up", "--no-workers", "--port", str(port), "--folder", str(folder), "--store", str(tmp_path / "store"))
    try:
        started = command(right, tmp_path, *up)
        assert started.returncode == 0, started.stderr
        api = f"http://127.0.0.1:{port}/api"
        for password in ("lab:" + WRONG, ""):
            machine = Machine("m", tmp_path / "m", tmp_path, {**os.environ, "PREFECT_API_URL": api})
            environment = {**machine.environment, "PREFECT_API_AUTH_STRING": password}
            del environment["PYTHONPATH"]
            if not password:
                del environment["PREFECT_API_AUTH_STRING"]
            for words in (("deploy",), ("worker", "--pool", "gpu"), ("schedule", "ls"), ("doctor", "--pool", "gpu")):
                done = command(environment, tmp_path, *words)
                assert done.returncode == 3, (words, done.stderr)
                assert f"the Prefect server at {api} has a password" in done.stderr
                assert "set PREFECT_API_AUTH_STRING" in done.stderr
                assert WRONG not in done.stdout + done.stderr
        assert command({**right, "PREFECT_API_URL": api}, tmp_path, "schedule", "ls").returncode == 0
    finally:
        command(right, tmp_path, "down", "--folder", str(folder))
