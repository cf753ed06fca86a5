"""What `make run` promises, with the real stages at smoke scale: scores, nothing to do again, bytes that come again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = ("quickstart", "--scale", "smoke")


class Folder:
    """An empty folder with a person in it who types `fairway ...`; no server is configured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self._environment = {**kept, "PREFECT_HOME": str(path / "prefect")}

    def fairway(self, *words: str) -> tuple[dict[str, Any], str]:
        """What it printed: the object on stdout, and stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words, "--json"],
            cwd=self.path,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=550,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    def records(self) -> dict[str, tuple[bytes, int]]:
        """Every record's bytes and time of change."""
        found = (self.path / ".fairway" / "records").rglob("*.json")
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder in which quickstart has run once."""
    folder = Folder(tmp_path_factory.mktemp("person"))
    result, _ = folder.fairway("run", *RECIPE)
    (folder.path / "first.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def first(folder: Folder) -> dict[str, Any]:
    return json.loads((folder.path / "first.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_first_run_scores_every_rung_and_weighs_what_is_submitted(folder: Folder):
    result = first(folder)
    assert set(result["scores"]) == {"raw", "averaged", "roundtrip", "sliding", "ttt"}
    assert all(0 < score["bpb"] < 20 and score["bytes"] > score["tokens"] for score in result["scores"].values())
    sizes = result["bytes"]
    assert sizes["total"] == sizes["code"] + sizes["model"] <= sizes["cap"] == 16_000_000
    assert "<html" in Path(result["report"]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_second_run_starts_no_stage_and_leaves_the_records_untouched(folder: Folder):
    before = folder.records()
    result, said = folder.fairway("run", *RECIPE)
    assert {stage["state"] for stage in result["stages"]} == {"cached"}
    assert " runs" not in said
    assert folder.records() == before
    for same in ("scores", "bytes", "report"):
        assert result[same] == first(folder)[same]


@pytest.mark.slow
def test_every_cpu_stage_comes_out_again_byte_for_byte(folder: Folder):
    result, _ = folder.fairway("artifacts", "verify", "--rebuild", "all")
    states = {each["label"]: each["state"] for each in result["rebuilt"]}
    assert set(states.values()) == {"same"}, result
    assert len(states) == len(first(folder)["stages"])


@pytest.mark.slow
def test_every_byte_in_the_store_is_what_it_was(folder: Folder):
    assert folder.fairway("artifacts", "verify")[0]["findings"] == []
