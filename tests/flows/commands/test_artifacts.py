"""`fairway artifacts`, as a person types it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifacts.store import Store
from flows.cli import main

KEY = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One artifact."""
    store, folder = Store.open(tmp_path / "store"), tmp_path / "out"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "w.bin").write_bytes(b"1234")
    store.publish(stage="train", key=KEY, folder=folder, components={}, report={}, inputs={})
    return store


@pytest.mark.parametrize("action", [["pin"], ["reject", "--reason", "diverged"]])
def test_a_user_without_a_name_can_judge_artifacts(
    store: Store, action: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container may run as a number that no /etc/passwd knows."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1_234_567)
    assert main(["artifacts", action[0], KEY[:12], *action[1:], "--store", store.url]) == 0
    assert KEY[:12] in capsys.readouterr().out
    if action == ["pin"]:
        assert store.pins()[0]["who"] == "1234567"
