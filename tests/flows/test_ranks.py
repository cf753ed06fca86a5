"""What people are shown of the ranks' output, and that the whole log has all of it."""

from __future__ import annotations

from pathlib import Path

from flows.ranks import SHOWN_LIMIT, Output, Said


def write(folder: Path, rank: int, text: str, stream: str = "stderr") -> None:
    path = folder / "job" / "attempt_0" / str(rank) / f"{stream}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_rank_0_is_shown_whole_and_others_by_what_they_warn_of(tmp_path: Path):
    output = Output(tmp_path / "log", tmp_path / "ranks")
    write(tmp_path / "ranks", 0, "step 1\nan error is fine\n", "stdout")
    write(tmp_path / "ranks", 1, "step 1\nUserWarning: slow link\n")
    assert output.poll() == [
        Said(0, "step 1"),
        Said(0, "an error is fine"),
        Said(1, "UserWarning: slow link", warns=True),
    ]
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == [
        "rank 0: step 1",
        "rank 0: an error is fine",
        "rank 1: step 1",
        "rank 1: UserWarning: slow link",
    ]
    assert output.poll() == []


def test_a_traceback_of_another_rank_is_shown_to_the_line_that_names_the_exception(tmp_path: Path):
    output = Output(tmp_path / "log", tmp_path / "ranks")
    traceback = ["Traceback (most recent call last):", '  File "x.py", line 1', "    boom()", "Boom: no"]
    write(tmp_path / "ranks", 3, "\n".join(["fine", *traceback, "fine again", ""]))
    assert [said.text for said in output.poll()] == traceback


def test_a_line_that_is_half_written_waits_until_it_is_whole_or_nobody_writes(tmp_path: Path):
    output = Output(tmp_path / "log", tmp_path / "ranks")
    write(tmp_path / "ranks", 1, "an err")
    assert output.poll() == []
    write(tmp_path / "ranks", 1, "or came")
    assert [said.text for said in output.poll(ended=True)] == ["an error came"]


def test_a_rank_that_never_stops_warning_does_not_fill_the_page(tmp_path: Path):
    output = Output(tmp_path / "log", tmp_path / "ranks")
    write(tmp_path / "ranks", 1, "a warning\n" * (SHOWN_LIMIT + 50))
    assert len(output.poll()) == SHOWN_LIMIT + 1
    write(tmp_path / "ranks", 1, "a warning\n")
    assert output.poll() == []
    assert len((tmp_path / "log").read_text(encoding="utf-8").splitlines()) == SHOWN_LIMIT + 51


def test_one_rank_writes_to_the_log_itself_and_what_an_earlier_attempt_said_is_not_said_again(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("earlier\n", encoding="utf-8")
    output = Output(log)
    with log.open("a", encoding="utf-8") as file:
        file.write("now\n")
    assert output.poll() == [Said(0, "now")]
