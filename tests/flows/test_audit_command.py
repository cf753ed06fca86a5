"""`fairway audit` on a run of the real stages: it prints what the audit found and computes no score again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.store import Store
from flows.closure import ROOT

pytestmark = pytest.mark.slow

RECIPE = """
extends = "quickstart"
without = ["evaluate.ttt", "evaluate.sliding", "evaluate.averaged"]
"""


class Shop:
    """A folder with a recipe, a store and the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        self.environment = {**kept, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect")}

    def __call__(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "flows.cli", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def records(self) -> dict[str, int]:
        """How many there are by stage."""
        found: dict[str, int] = {}
        for stage, _ in Store.open(self.folder / ".fairway").records():
            found[stage] = found.get(stage, 0) + 1
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One finished run."""
    shop = Shop(tmp_path_factory.mktemp("shop"))
    (shop.folder / "small.toml").write_text(RECIPE, encoding="utf-8")
    shop("run", "small.toml", "--scale", "smoke", "--set", "train.steps=12", "--json")
    return shop


def test_the_verdict_is_printed_from_the_store(shop: Shop):
    before = shop.records()
    told = json.loads(shop("audit", "--json"))
    (run,) = [run["id"] for run in Store.open(shop.folder / ".fairway").list_runs() if run["id"] == told["run"]]
    rules = told["audit"]["rules"]
    assert rules["C1"] == "pass"
    assert set(told["audit"]["scores"]) == {"roundtrip"}
    text = shop("audit", run)
    assert text.startswith(f"run {run}\nscore\trule\tdetector\tverdict\tfinding\n")
    assert "\tC1\t" in text
    assert "\ncost: " in text
    for name in told["verdict"]["rulings"]:
        assert f"open question {name}: " in text
    assert shop.records() == before  # nothing was computed


def test_a_deep_audit_runs_the_audit_and_nothing_else(shop: Shop):
    before = shop.records()
    quick, deep = json.loads(shop("audit", "--json")), json.loads(shop("audit", "--deep", "--json"))
    assert shop.records() == {**before, "audit": before["audit"] + 1}
    asked = [len(each["verdict"]["scores"]["roundtrip"]["findings"]) for each in (quick, deep)]
    assert asked[1] >= asked[0]
    assert json.loads(shop("audit", "--deep", "--json"))["verdict"] == deep["verdict"]  # from the store now


def test_what_cannot_be_audited_is_told(shop: Shop):
    assert "has none; run a recipe first" in shop("audit", "--store", "empty", code=3)
    assert "20200101-000000-000-0000" in shop("audit", "20200101-000000-000-0000", code=3)


def test_a_score_that_is_gone_is_not_computed_again(shop: Shop):
    name = next(name for name in Store.open(shop.folder / ".fairway").names() if "evaluate[roundtrip]" in name)
    shop("artifacts", "reject", name, "--reason", "a test")
    assert "evaluate[roundtrip] has no record there" in shop("audit", code=3)
