"""What a finished run prints: a score never stands without the rules that it breaks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.show import print_result
from flows.summary import summarise

REPORT = {"bpb": 1.25, "nats_per_token": 2.5, "tokens": 1000, "bytes": 3000}


def result(*reports: dict[str, Any]) -> dict[str, Any]:
    outcomes = [
        SimpleNamespace(
            step=SimpleNamespace(stage="evaluate", part=f"part{i}"),
            record=SimpleNamespace(report=report, provenance={"seconds": 2.0}, key="k"),
            state="ran",
            artifact="a",
            seconds=1.0,
        )
        for i, report in enumerate(reports)
    ]
    session = SimpleNamespace(run=SimpleNamespace(id="r"), recipe="pr398", scale="full", seed=1)
    return summarise(session, outcomes)  # type: ignore[arg-type]


def test_a_score_carries_the_rules_that_it_breaks_into_json_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    broken = {**REPORT, "marks": ["tail_rescored"], "rules_broken": ["C4", "C3", "C1", "C4"]}
    found = result(REPORT, broken)
    assert found["scores"]["part1"]["rules_broken"] == ["C1", "C3", "C4"]
    assert "rules_broken" not in found["scores"]["part0"]
    print_result(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t")[-1] == "marks"
    assert lines[2].split("\t")[-1] == ""
    assert lines[3].split("\t")[-1] == "tail_rescored, breaks C1 C3 C4"


def test_a_table_without_caveats_has_no_column_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result({**REPORT, "marks": [], "rules_broken": []}))
    assert "marks" not in capsys.readouterr().out
