"""How a worker follows the program of a stage, without a server and a store."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import remote_stage
from flows.remote_stage import Progress, _execute
from flows.vigil import Vigil

Execute = Callable[[str], dict[str, Any]]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Follows a program that came as the source of an assignment; its result."""
    program: list[str] = []

    def unpack(source: bytes, tree: Path) -> None:
        tree.mkdir()
        (tree / "program.py").write_text(textwrap.dedent(program[0]), encoding="utf-8")

    monkeypatch.setattr(remote_stage, "PROGRAM", "program")
    monkeypatch.setattr(remote_stage, "unpack_source", unpack)
    monkeypatch.setattr(remote_stage.Store, "open", lambda *_, **__: SimpleNamespace(read_object=lambda _: b""))
    monkeypatch.setattr(Progress, "_write", lambda self: None)
    assignment: Any = SimpleNamespace(label="train", store="store", source="0" * 64, to_json=dict)

    def follow(text: str) -> dict[str, Any]:
        program.append(text)
        return _execute(assignment, tmp_path, Vigil(None), logging.getLogger("test of a stage's run"))

    return follow


def test_a_program_that_complains_a_lot_goes_on_and_its_last_words_are_logged(
    execute: Execute, caplog: pytest.LogCaptureFixture
):
    """Of a store that is away for hours, each thread that asks it says so: more than a pipe holds."""
    result = execute("""
        import pathlib, sys
        for line in range(3000):
            print("the store does not answer (ConnectTimeoutError); asking again", line, file=sys.stderr)
        pathlib.Path(sys.argv[1], "result.json").write_text('{"outcome": "created"}')
    """)
    assert result == {"outcome": "created"}
    assert [record.message.split()[-1] for record in caplog.records] == [str(line) for line in range(2980, 3000)]
