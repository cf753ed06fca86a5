"""`fairway audit --fixtures`: the table, and an exit code that says whether all of it is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands import audit_fixtures
from stages.audit.finding import Finding
from stages.audit.fixtures import table
from stages.audit.fixtures.catalogue import FIXTURES


def rows(found: dict[str, list[Finding]]):
    """What `run` would return if the audit had found this."""
    return lambda workshop, **_: [table.Row(fixture, tuple(found.get(fixture.name, ())), 0.1) for fixture in FIXTURES]


def as_expected() -> dict[str, list[Finding]]:
    return {
        each.name: [Finding(rule=each.rule, detector=each.detector, verdict="fail", says="")]
        for each in FIXTURES
        if each.rule
    }


@pytest.fixture(autouse=True)
def _torch_threads(one_thread):
    """The command sets them."""


def test_it_exits_0_if_every_row_is_right_and_1_if_one_is_not(monkeypatch, capsys):
    monkeypatch.setattr(audit_fixtures, "run", rows(as_expected()))
    assert main(["audit", "--fixtures"]) == 0
    assert f"{len(FIXTURES)} of {len(FIXTURES)}" in capsys.readouterr().out
    monkeypatch.setattr(audit_fixtures, "run", rows({**as_expected(), "slot": []}))
    assert main(["audit", "--fixtures", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["right"] == len(FIXTURES) - 1
    assert [row["fixture"] for row in told["fixtures"] if not row["right"]] == ["slot"]


def test_the_page_on_the_audit_has_the_table():
    page = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    listed = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:3] == "| `"]
    listed = [[cells[0].strip("`"), *cells[1:]] for cells in listed]
    shown = [[name, kind, expected] for name, _, kind, expected, _, right in listed if right == "yes"]
    wanted = [[each.name, each.kind, f"{each.rule} {each.detector}" if each.rule else "nothing"] for each in FIXTURES]
    assert shown == wanted
    about = {cells[0]: cells[1] for cells in listed}
    assert about == {each.name: each.about for each in FIXTURES}
