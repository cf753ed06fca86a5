"""What people read while a run goes on, and at its end."""

from __future__ import annotations

import io
import json

import pytest

from flows import show
from flows.launch import Progress
from flows.session import Event
from flows.tables import bytes_text, print_table, seconds_text

HALF = Progress(
    done=500, total=1000, unit="steps", rate=12.5, eta_s=40.0, metrics={"loss": 3.14159, "phase": "warmdown"}
)


def test_progress_has_rate_and_remaining_time():
    text = show.progress_text(HALF)
    assert text == "500/1,000 steps  12.5 steps/s  40.0 s left  loss 3.142  phase warmdown"


def test_a_log_gets_a_line_of_progress_every_half_minute_and_not_more(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    viewer = show.PlainRun(out)
    viewer(Event("start", "train"))
    for _ in range(120):
        now[0] += 1.0
        viewer(Event("progress", "train", progress=HALF))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["train", "runs"]
    assert len(lines) == 1 + 4


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (247.4, "4:07"), (7391, "2:03:11")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (15_900_000, "15.9 MB"), (1000, "1 kB"), (2_500_000_000_000, "2.5e+03 GB")]
)
def test_sizes_are_decimal_as_the_challenge_counts(count: int, text: str):
    assert bytes_text(count) == text


def test_a_table_for_programs_is_tab_separated(capsys: pytest.CaptureFixture[str]):
    print_table(["name", "bytes"], [["a b", 3], [None, ""]], "title")
    assert capsys.readouterr().out == "title\nname\tbytes\na b\t3\n\t\n"


def test_marks_are_shown_beside_their_score(capsys: pytest.CaptureFixture[str]):
    score = {"bpb": 1.5, "nats_per_token": 2.0, "tokens": 10, "bytes": 30, "seconds": 1.0}
    result = {
        "run": "r", "recipe": "q", "scale": "smoke", "seed": 1, "bytes": {}, "stages": [], "report": None, "audit": {},
        "scores": {"raw": score, "ttt": {**score, "marks": ["partial"]}},
    }  # fmt: skip
    show.print_result(json.loads(json.dumps(result)))
    out = capsys.readouterr().out
    assert "took\tmarks" in out
    assert "1.0 s\tpartial" in out
