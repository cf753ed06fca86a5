"""The store or the server is away for a while, under runs that workers carry out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import LIMIT_S, Lab, free_port, wait_for
from link import Link
from toyrun import write_recipe
from weather import Attempts, Gate, all_sound, changed, result, small_recipe, undisturbed

AWAY_S = 60.0
SILENT_S = 15.0  # after which a stage that says nothing is declared dead in this lab


@pytest.fixture
def recipe(lab: Lab) -> str:
    """A small recipe as text; its documents lie on the submitter's machine."""
    return small_recipe(lab)


@pytest.fixture
def link(s3_environment: dict[str, str]) -> Iterator[Link]:
    """A link to the store."""
    host, port = s3_environment["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    with Link(host, int(port)) as link:
        yield link


def by(link: Link) -> dict[str, str]:
    """Variables of a machine whose way to the store is this link."""
    return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{link.port}"}


@pytest.mark.slow
def test_a_minute_without_the_store_costs_a_worker_a_minute_and_a_flow_waits_as_well(
    lab: Lab, recipe: str, link: Link, tmp_path: Path
):
    tree, attempts = lab.submitter.tree, Attempts(lab)
    with (
        changed(lab.gpu, "gpu", 1, **by(link)),
        changed(lab.submitter, "cpu", 0, **by(link)),
        Gate(tree, "train", tmp_path) as train,
        Gate(tree, "average", tmp_path) as average,
    ):
        run = lab.score(toml=recipe, scale="smoke")
        train.wait()  # on the worker
        link.cut()
        train.open()
        time.sleep(AWAY_S)
        assert lab.state(run) == "RUNNING"
        assert attempts.states() == ["RUNNING"]
        link.mend()
        average.wait()  # beside the flow
        link.cut()
        average.open()
        time.sleep(AWAY_S / 6)
        assert lab.state(run) == "RUNNING"
        link.mend()
        assert lab.ended(run)["type"] == "COMPLETED"
        assert attempts.states() == ["COMPLETED"]
        assert (train.passed, average.passed) == (1, 1)
        assert result(lab, lab.document()) == undisturbed(lab, recipe)
    all_sound(lab.store)


@pytest.mark.slow
def test_a_stage_that_starts_while_the_store_is_away_waits_for_it(lab: Lab, recipe: str, link: Link, tmp_path: Path):
    attempts = Attempts(lab)
    with changed(lab.gpu, "gpu", 1, **by(link)), Gate(lab.submitter.tree, "train", tmp_path) as train:
        link.cut()
        run = lab.score(toml=recipe, scale="smoke")
        wait_for(lambda: attempts.states() == ["RUNNING"], "the training's run has begun")
        time.sleep(2 * SILENT_S)  # it has not even its source
        assert attempts.states() == ["RUNNING"]
        assert train.passed == 0
        train.open()
        link.mend()
        assert lab.ended(run)["type"] == "COMPLETED"
        assert attempts.states() == ["COMPLETED"]
        assert result(lab, lab.document()) == undisturbed(lab, recipe)


@pytest.mark.slow
def test_a_server_that_restarts_while_a_stage_waits_for_a_worker_loses_nothing(lab: Lab, recipe: str, tmp_path: Path):
    attempts = Attempts(lab)
    lab.gpu.stop()
    with Gate(lab.submitter.tree, "train", tmp_path) as train:
        train.open()
        try:
            run = lab.score(toml=recipe, scale="smoke")
            wait_for(lambda: attempts.states() == ["SCHEDULED"], "the training waits for a worker")
            lab.restart_server()
            assert (lab.state(run), attempts.states()) == ("RUNNING", ["SCHEDULED"])
        finally:
            lab.gpu.start_worker("gpu", 1)
        assert lab.ended(run)["type"] == "COMPLETED"
        assert attempts.states() == ["COMPLETED"]
        assert train.passed == 1
        assert result(lab, lab.document()) == undisturbed(lab, recipe)


def test_a_run_in_a_pool_whose_server_is_absent_says_so_before_anything_is_written(tmp_path: Path):
    write_recipe(tmp_path)
    api = f"http://127.0.0.1:{free_port()}/api"
    words = [sys.executable, "-m", "flows.cli", "run", "toy.toml", "--pool", "gpu", "--store", "store"]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PREFECT_API_URL": api}, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 3
    advice = "start it, or set PREFECT_API_URL to another"
    assert done.stderr == f"fairway: the Prefect server answers; {api} does not; {advice}\n"
    assert not (tmp_path / "store").exists()
