"""Whole runs whose store is on S3: cached, damaged, and stopped between any two calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from lab import LIMIT_S, wait_for
from link import Link
from toyriver import behave, make_tree
from toyrun import launch_here, request, run_in_one_thread, run_toy, write_recipe

import flows.step
from artifacts import remembered
from artifacts.backend import open_backend
from artifacts.record import Record
from artifacts.remote import FsspecBackend
from artifacts.store import Store
from flows.identity import Components
from flows.prepare import Prepared
from flows.river import Step
from flows.session import Outcome, Session

SMALL = ("read", "read_many", "write", "create", "walk", "delete", "entry", "move")
CALLS = (*SMALL, "upload", "download", "download_hashed")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy recipe; the store's local folder lies in it too."""
    write_recipe(tmp_path)
    make_tree(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_second_run_finds_everything_and_starts_nothing(here: Path, s3_store: str):
    first = run_toy(request(here, here / "tree", store=s3_store))
    again = run_toy(request(here, here / "tree", store=s3_store))
    assert {o.state for o in first} == {"ran"}
    assert {o.state for o in again} == {"cached"}
    assert Store.open(s3_store).verify() == []


def test_a_flipped_byte_on_the_server_is_found_and_mended(here: Path, s3_store: str):
    first = run_toy(request(here, here / "tree", store=s3_store))
    archive = next(o.record for o in first if o.step.label == "compress").files[0]
    backend = open_backend(s3_store)
    path = f"objects/{archive.sha256[:2]}/{archive.sha256}"
    backend.write(path, b"x" + backend.read(path)[1:])
    assert [finding.path for finding in Store.open(s3_store).verify()] == [path]
    # Another host, which has no copy of its own.
    here.joinpath("cache").rename(here / "cache-of-the-first-host")
    again = run_toy(request(here, here / "tree", store=s3_store, force=("evaluate",)))
    assert "compress" in {o.step.label for o in again if o.state == "ran"}
    assert {finding.kind for finding in Store.open(s3_store).verify()} <= {"dangling name"}


class OtherMachine:
    """Runs what needs a device, as a worker does: in a process that publishes and is gone."""

    def takes(self, step: Step) -> bool:
        return step.device is not None

    def make(self, step: Step, key: str, components: Components, session: Session) -> tuple[Record, bool, str]:
        there = replace(session, store=Store.open(session.store.url), elsewhere=None)
        return flows.step._run(step, key, components, there, lambda: False).record, True, ""


def send_away(prepared: Prepared) -> None:
    prepared.session.elsewhere = OtherMachine()


@pytest.mark.parametrize("each", [None, send_away])
def test_the_first_to_list_a_store_reads_one_file_for_a_run_wherever_its_stages_ran(
    here: Path, s3_store: str, monkeypatch: pytest.MonkeyPatch, each: Callable[[Prepared], None] | None
):
    monkeypatch.setattr(remembered, "_WORTH_AN_INDEX", 10)
    monkeypatch.setattr(flows.step, "launch", launch_here)
    outcomes = run_toy(request(here, here / "tree", store=s3_store), each=each)
    run_toy(request(here, here / "tree", store=s3_store))  # all cached: nothing to tell
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache-of-another-host"))
    asked: list[str] = []
    read_many = FsspecBackend.read_many

    def note(backend: FsspecBackend, paths: Sequence[str]) -> list[bytes | None]:
        asked.extend(path.split("/")[0] for path in paths)
        return read_many(backend, paths)

    monkeypatch.setattr(FsspecBackend, "read_many", note)
    records = {record.id for record, names in Store.open(s3_store).all_records() if names}
    assert records == {outcome.record.id for outcome in outcomes}
    assert asked == ["index"]


class Died(BaseException):
    """The process is gone."""


def stop_at(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """From the `at`-th call on, nothing reaches the server any more; returns a counter of calls."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if at and count >= at:
                raise Died
            return real(*given, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(FsspecBackend, name, counted(getattr(FsspecBackend, name)))
    return lambda: count


def results(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Name -> key and files. Those of the audit hang on the seconds that each stage took."""
    return {o.artifact: None if o.step.stage == "audit" else (o.record.key, o.record.files) for o in outcomes}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the beating thread dies too
def test_a_run_that_stops_between_store_calls_ends_well_when_it_runs_again(
    here: Path, s3_store: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flows.step, "launch", launch_here)
    # A holder that died is taken for dead after a minute of silence; here after half a second.
    monkeypatch.setattr(Store, "lease", partialmethod(Store.lease, time_limit_s=0.5))
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at(patch, 0)
        whole = run_in_one_thread(request(here, here / "tree", store=f"{s3_store}/whole"))
        points = calls()
    expected = results(whole)
    tried = range(3, points, 29)
    for at in tried:
        asked = request(here, here / "tree", store=f"{s3_store}/{at}")
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, at)
            with pytest.raises(Died):
                run_in_one_thread(asked)
        assert Store.open(asked.store).verify() == [], at
        again = run_in_one_thread(asked)
        assert results(again) == expected, at
        assert Store.open(asked.store).verify() == [], at
    sys.stdout.write(f"stopped at {len(tried)} of {points} calls\n")


@pytest.mark.slow
def test_a_store_that_is_away_for_a_minute_costs_a_minute(
    here: Path, s3_environment: dict[str, str], s3_store: str, monkeypatch: pytest.MonkeyPatch
):
    host, port = s3_environment["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    behave(here / "tree", "train", "import time; time.sleep(3)")
    away_s = 60.0
    with Link(host, int(port)) as link:
        environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{link.port}"}
        words = [sys.executable, "-m", "flows.cli", "run", "toy.toml", "--store", s3_store, "--json"]
        environment["PYTHONPATH"] = str(here / "tree")
        with (here / "said.txt").open("wb") as said:
            run = subprocess.Popen(words, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            wait_for(lambda: list(open_backend(s3_store).walk("records/vocabulary")), "the run is under way")
            link.cut()
            time.sleep(away_s)
            assert run.poll() is None, (here / "said.txt").read_text(encoding="utf-8")
            link.mend()
            printed, _ = run.communicate(timeout=LIMIT_S)
        finally:
            run.kill()
            run.wait()
    assert run.returncode == 0, (here / "said.txt").read_text(encoding="utf-8")
    assert {stage["state"] for stage in json.loads(printed)["stages"]} == {"ran"}
    assert Store.open(s3_store).verify() == []
