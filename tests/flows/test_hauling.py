"""Transfers are shown to whoever waits for them: on a terminal, in a log, and on the pool's page."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from artifacts.meter import Moved
from flows.hauling import on_terminal, told
from flows.launch import Progress
from flows.live import LiveRun
from flows.session import Event
from flows.show import PlainRun

MOVED = Moved("fetching inputs", 312_000_000, 800_000_000, 95e6)
TEXT = "fetching inputs 312 of 800 MB, 95 MB/s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_command_shows_one_line_on_a_terminal_and_clears_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with on_terminal() as tell:
        tell(MOVED)
    assert TEXT in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K")


def test_a_command_whose_errors_go_to_a_file_shows_nothing(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with on_terminal() as tell:
        tell(MOVED)
    import sys

    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_steps_transfers_are_events_of_its_run():
    said: list[Event] = []

    class Listening:
        tell = staticmethod(said.append)

    told(Listening(), "train")(MOVED)  # type: ignore[arg-type]
    assert said == [Event("progress", "train", TEXT)]


def test_a_run_on_a_terminal_has_a_bar_for_a_stage_whose_inputs_are_on_their_way():
    out = Terminal()
    with LiveRun(Console(file=out, force_terminal=True, width=120)) as live:
        live(Event("progress", "train", TEXT))
        live._bars.refresh()
        assert TEXT in out.getvalue()
        live(Event("start", "train"))
        live(Event("progress", "train", progress=Progress(done=1, total=2, unit="steps")))
        live._bars.refresh()
        live(Event("progress", "train", "storing results 1 of 2 MB, 1.0 MB/s"))
        live._bars.refresh()
        live(Event("failed", "train", "why"))
        assert len(live._tasks) == len(live._bars.tasks) == 0
    assert "1/2 steps" in out.getvalue()
    assert "storing results 1 of 2 MB" in out.getvalue()


def test_a_log_has_a_line_now_and_then():
    out = io.StringIO()
    plain = PlainRun(out)
    for _ in range(5):
        plain(Event("progress", "train", TEXT))
    assert out.getvalue().count(TEXT) == 1


def test_the_pools_page_says_what_is_fetched(monkeypatch):
    pytest.importorskip("prefect")
    from flows import remote_stage

    shown: list[str] = []
    monkeypatch.setattr(remote_stage, "create_progress_artifact", lambda **given: shown.append(given["description"]))
    progress = remote_stage.Progress("train", logging.getLogger("test"))
    progress.note({"kind": "progress", "text": TEXT})
    progress._shown_s -= 2.0
    progress.show(changed=True)
    assert shown[-1] == f"train: {TEXT}"
