"""`fairway runs logs`, with a server that this test plays: what a stage says while it runs, and when it has ended."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import Log

from artifacts.store import Store
from flows import said
from flows.commands import logs as command
from flows.said import Said
from stages.contract import StageError

RUN, STAGE = "20260101-000000-000-abcd", str(uuid4())
START = datetime(2026, 1, 1, tzinfo=UTC)


class Server:
    """The log of one run, as Prefect's API gives it."""

    def __init__(self) -> None:
        self.log: list[Log] = []
        self.asked = 0

    def says(self, text: str, at_s: float, name: str = "prefect.flow_runs.said.train") -> None:
        at = START + timedelta(seconds=at_s)
        self.log.append(Log(id=uuid4(), name=name, level=20, message=text, timestamp=at, flow_run_id=UUID(STAGE)))

    def read_logs(self, asked: Any, limit: int, offset: int) -> list[Log]:
        self.asked += 1
        assert asked.flow_run_id.any_ == [UUID(STAGE)]
        since = asked.timestamp.after_ or START
        found = sorted((line for line in self.log if line.timestamp >= since), key=lambda line: line.timestamp)
        return found[offset : offset + limit]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr(said, "get_client", lambda sync_client: nullcontext(found))
    monkeypatch.setattr(command, "use_server", lambda folder: "http://server/api")
    return found


def test_only_the_stages_own_lines_are_heard_and_each_once(server: Server):
    server.says("Worker 'gpu' submitting", 0, "prefect.flow_runs.worker")
    server.says("train: 12/20 steps", 1, "prefect.flow_runs")
    server.says("from step 0", 2)
    stage = Said(STAGE)
    assert stage.lines() == ["from step 0"]
    assert stage.lines() == []
    server.says("step 2", 30)
    assert stage.lines() == ["step 2"]
    server.says("late, from a process that sends less often", 25)
    server.says("step 3", 31)
    assert stage.lines() == ["late, from a process that sends less often", "step 3"]


def test_a_long_log_is_heard_whole_and_what_was_heard_long_ago_is_not_asked_for_again(server: Server):
    for number in range(1001):
        server.says(f"step {number}", number)
    stage = Said(STAGE)
    assert stage.lines() == [f"step {number}" for number in range(1001)]
    before = server.asked
    assert stage.lines() == []
    assert server.asked - before <= 2


def test_a_server_that_does_not_answer_is_told_as_that(server: Server, monkeypatch: pytest.MonkeyPatch):
    def refuse(*asked: Any, **more: Any) -> Any:
        raise httpx.ConnectError("nobody there")

    monkeypatch.setattr(server, "read_logs", refuse)
    with pytest.raises(StageError, match="does not give it: ConnectError; try again, or when the stage has ended"):
        Said(STAGE).lines()


class Runs:
    """A store with one run."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder / "store")
        self.arguments = Namespace(
            store=str(folder / "store"), run=RUN, stage="", json=False, follow=False, folder=str(folder / "up")
        )

    def write(self, *steps: dict[str, Any], state: str = "running") -> None:
        known = {"recipe": "toy", "scale": "smoke", "seed": 1, "overrides": [], "started": "2026-01-01T00:00:00+00:00"}
        self.store.write_run({"id": RUN, **known, "state": state, "steps": list(steps)})

    def keep(self, text: str, folder: Path) -> str:
        """sha256 of a log that the store has now."""
        (folder / "kept").write_text(text, encoding="utf-8")
        return self.store.put_file(folder / "kept").sha256

    def print(self, **asked: Any) -> None:
        assert command.logs(Namespace(**{**vars(self.arguments), **asked})) == 0


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "FOLLOW_EVERY_S", 0.0)
    return Runs(tmp_path)


def step(stage: str, state: str, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "part": "", "state": state, **more}


def in_pool(stage: str, state: str, **more: Any) -> dict[str, Any]:
    return step(stage, state, pool="gpu", flow_run=STAGE, **more)


def test_a_running_stage_of_a_pool_is_printed_beside_those_that_have_ended(
    runs: Runs, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    server.says("from step 0", 1)
    runs.write(step("corpus", "ran", log=runs.keep("3 documents\n", tmp_path)), in_pool("train", "running"))
    runs.print()
    assert capsys.readouterr().out == "== corpus\n3 documents\n== train\nfrom step 0\n"
    runs.print(stage="train", json=True)
    assert json.loads(capsys.readouterr().out) == {"run": RUN, "logs": {"train": "from step 0\n"}}


def test_a_stage_that_has_ended_is_asked_of_the_store_alone(
    runs: Runs, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    server.says("what the server has", 1)
    runs.write(in_pool("train", "failed", log=runs.keep("what the store has\n", tmp_path)), state="failed")
    runs.print()
    assert capsys.readouterr().out == "== train\nwhat the store has\n"
    assert server.asked == 0


def test_a_stage_that_has_said_nothing_yet_is_told_as_that(runs: Runs, server: Server):
    runs.write(in_pool("train", "running"))
    with pytest.raises(StageError, match="has said nothing yet; try again later"):
        runs.print(stage="train")
    with pytest.raises(StageError, match="has no 'quantize'; it has train"):
        runs.print(stage="quantize")


def test_without_a_server_the_other_logs_are_printed_and_the_one_that_is_asked_for_is_an_error(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    runs.write(step("corpus", "ran", log=runs.keep("3 documents\n", tmp_path)), in_pool("train", "running"))
    runs.print()
    printed = capsys.readouterr()
    assert printed.out == "== corpus\n3 documents\n"
    assert "train runs in the pool gpu; this command needs a Prefect server; none is configured" in printed.err
    with pytest.raises(StageError, match="none is configured"):
        runs.print(stage="train")


def test_following_and_one_object_are_two_things(runs: Runs):
    with pytest.raises(StageError, match="give one of them"):
        runs.print(follow=True, json=True)


class Story:
    """What happens between one look at the run and the next."""

    def __init__(self, runs: Runs, *chapters: Callable[[], None]) -> None:
        self._chapters = list(chapters)
        self._chapters.pop(0)()
        self._read = runs.store.read_run

    def read_run(self, store: Store, run_id: str) -> dict[str, Any]:
        """The run as it is, and then the next chapter."""
        found = self._read(run_id)
        if self._chapters:
            self._chapters.pop(0)()
        return found


def test_following_prints_what_comes_until_the_run_has_ended(
    runs: Runs, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    corpus = step("corpus", "ran", log=runs.keep("3 documents\n", tmp_path))
    weigh = step("weigh", "ran", log=runs.keep("15,000 bytes\n", tmp_path))
    kept = runs.keep("rank 0: from step 0\nrank 0: step 10\nrank 0: done\nrank 1: says this to nobody\n", tmp_path)
    trained = in_pool("train", "ran", log=kept)

    def trains() -> None:
        runs.write(corpus, in_pool("train", "running"))

    def speaks() -> None:
        server.says("step 10", 2)

    def ends() -> None:
        runs.write(corpus, trained, weigh)

    def last_word() -> None:
        server.says("done", 3)

    server.says("from step 0", 1)
    over: Callable[[], None] = lambda: runs.write(corpus, trained, weigh, state="completed")  # noqa: E731
    story = Story(runs, trains, speaks, lambda: None, ends, last_word, over)
    monkeypatch.setattr(Store, "read_run", lambda self, run_id: story.read_run(self, run_id))
    runs.print(follow=True)
    assert capsys.readouterr().out == (
        "== corpus\n3 documents\n== train\nfrom step 0\nstep 10\ndone\n== weigh\n15,000 bytes\n"
    )


def test_following_goes_over_to_the_next_attempt(
    runs: Runs, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first = str(uuid4())
    to_come = {first: ["from step 0"], STAGE: ["from step 10"]}
    monkeypatch.setattr(
        said, "Said", lambda run: SimpleNamespace(lines=lambda: [to_come[run].pop() for _ in to_come[run]])
    )
    story = Story(
        runs,
        lambda: runs.write({**in_pool("train", "running"), "flow_run": first}),
        lambda: None,
        lambda: runs.write(in_pool("train", "running")),
        lambda: runs.write(in_pool("train", "ran"), state="completed"),
    )
    monkeypatch.setattr(Store, "read_run", lambda self, run_id: story.read_run(self, run_id))
    runs.print(follow=True)
    assert capsys.readouterr().out == "== train\nfrom step 0\nfrom step 10\n"


def test_a_stage_of_this_machine_is_followed_where_it_writes(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = command._Shelf(runs.store, RUN, "", alone=False).path(step("train", ""))
    path.parent.mkdir(parents=True)
    path.write_text("from step 0\nhalf a li", encoding="utf-8")

    def ends() -> None:
        path.write_text("from step 0\nhalf a line\n", encoding="utf-8")
        runs.write(step("train", "ran"), state="completed")

    story = Story(runs, lambda: runs.write(step("train", "running")), lambda: None, ends)
    monkeypatch.setattr(Store, "read_run", lambda self, run_id: story.read_run(self, run_id))
    runs.print(follow=True)
    assert capsys.readouterr().out == "== train\nfrom step 0\nhalf a line\n"
