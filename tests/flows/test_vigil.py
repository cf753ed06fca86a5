"""What a run makes of its own state on the server, without a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Running, Scheduled

from flows import vigil
from flows.closure import ROOT
from flows.signs import WORKER
from flows.vigil import Vigil

OURS = Running(id=uuid4())
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch):
    """What the run `OURS` ends for, if the server says this."""
    monkeypatch.setattr(vigil, "own_state", lambda: OURS.id)

    def look(state: State | None) -> Vigil:
        monkeypatch.setattr(Vigil, "_ask", lambda self: state)
        found = Vigil(uuid4())
        found._look()
        return found

    return look


def test_a_run_that_runs_and_a_server_that_is_silent_stop_nothing(watch):
    assert watch(OURS).reason == ""
    assert watch(None).reason == ""


@pytest.mark.parametrize("state", [Cancelling(message="by Ada"), Cancelled(message="by Ada")])
def test_a_cancelled_run_ends_as_that_with_the_words_of_whoever_did_it(watch, state: State):
    ended = watch(state)
    assert (ended.verdict(), ended.message) == ("cancelled", "by Ada")
    ended.leave_if_replaced()


@pytest.mark.parametrize("state", [Crashed(), Completed(), Scheduled(), Pending(), Running(id=uuid4())])
def test_a_run_that_was_declared_dead_or_started_again_gives_up_without_a_word(watch, state: State):
    ended = watch(state)
    assert ended.stopped.is_set()
    assert ended.verdict() == "replaced"
    with pytest.raises(Abort):  # Prefect's engine then sets no state: what it would set is another process's
        ended.leave_if_replaced()


@pytest.mark.parametrize("reason", ["terminated", "orphaned"])
def test_a_run_without_machine_or_worker_is_told_by_its_server_what_it_ends_as(
    watch, monkeypatch: pytest.MonkeyPatch, reason: str
):
    """Between the signal and the end of its grace somebody cancels it, or starts it again somewhere else."""

    def asked(state: State | None) -> Vigil:
        ended = watch(OURS)
        ended._stop(reason)
        monkeypatch.setattr(Vigil, "_ask", lambda self: state)
        return ended

    assert [asked(state).verdict() for state in (OURS, None)] == [reason, reason]
    cancelled = asked(Cancelling(message="by Ada"))
    assert (cancelled.verdict(), cancelled.message) == ("cancelled", "by Ada")  # and it is not started again
    replaced = asked(Running(id=uuid4()))
    with pytest.raises(Abort):
        replaced.leave_if_replaced()


def test_a_run_whose_worker_was_gone_before_it_could_look_is_an_orphan(watch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WORKER, str(os.getppid()))
    assert watch(OURS).reason == ""
    monkeypatch.setenv(WORKER, str(os.getpid()))  # nobody is its own parent
    assert watch(OURS).reason == "orphaned"


def history(monkeypatch: pytest.MonkeyPatch, *states: State) -> None:
    """What the server says that this run has been, in no order."""
    told = [state.model_copy(update={"timestamp": START + timedelta(seconds=at)}) for at, state in enumerate(states)]
    monkeypatch.setattr(vigil, "own_id", uuid4)
    monkeypatch.setattr(vigil, "own_state", lambda: OURS.id)
    client = SimpleNamespace(read_flow_run_states=lambda run: told[::-1])
    monkeypatch.setattr(vigil, "get_client", lambda sync_client: nullcontext(client))


@pytest.mark.parametrize("end", [Crashed(message="silence"), Cancelled(message="by Ada")])
def test_a_run_that_had_ended_before_its_process_began_knows_how(monkeypatch: pytest.MonkeyPatch, end: State):
    history(monkeypatch, Scheduled(), Pending(), end, OURS)
    assert (found := vigil.ended_before()) is not None
    assert (found.type, found.message) == (end.type, end.message)


@pytest.mark.parametrize("later", [(), (Crashed(),)])
def test_a_run_that_was_started_again_has_not_ended_before_it_began(monkeypatch: pytest.MonkeyPatch, later):
    history(monkeypatch, Scheduled(), Pending(), Running(), Crashed(), Scheduled(), Pending(), OURS, *later)
    assert vigil.ended_before() is None


TALKATIVE = """
import sys, pathlib
from rich.console import Console
from flows.vigil import Vigil
console = Console()
with Vigil(None).watching():
    sys.stdin.readline()
    for line in range(3):
        console.print("a line for nobody")
        print("another", flush=True)
    pathlib.Path(sys.argv[1]).write_text("went on")
"""


def test_a_log_line_for_a_worker_that_is_gone_does_not_end_the_run(tmp_path: Path):
    said = tmp_path / "said"
    command = [sys.executable, "-c", TALKATIVE, str(said)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as run:
        run.stdout.close()  # nobody reads any more
        run.stdin.write(b"go\n")
        run.stdin.close()
        run.wait(60)
    assert said.read_text() == "went on"


STUBBORN = """
import os, sys, time
from flows import vigil
vigil.ASK_EVERY_S, limit_s = 0.1, float(sys.argv[1])
vigil.end_after_parent(os.getppid(), limit_s)
print(os.getpid(), flush=True)
while True:
    try:
        time.sleep(60)  # as Prefect's client does before it asks a server again that is gone
    except BaseException:
        pass
"""


def test_a_run_that_will_not_end_ends_after_its_worker():
    worker = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}, '0.5']).wait()"
    with subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        run = int(parent.stdout.readline())
        with pytest.raises(subprocess.TimeoutExpired):  # while its worker lives, so does it
            parent.wait(1.5)
        parent.kill()
        try:
            parent.communicate(timeout=60)  # the pipe's end: the last one who had it is gone
        except subprocess.TimeoutExpired:
            os.kill(run, signal.SIGKILL)
            raise
