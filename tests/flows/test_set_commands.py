"""`fairway seeds`, `sweep`, `compare` and `board` as a person types them, on the toy river."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyrun import launch_here
from toyseeds import ask, conduct, scored_tree

from flows import step as flows_step
from flows.cli import main
from flows.commands import seeds as seeds_command
from flows.commands import sweep as sweep_command
from flows.launch import StageFailed
from flows.prepare import Prepared, Request


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One toy tree for all tests here."""
    return scored_tree(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def asked(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Commands run the toy tree, without Prefect; stages run in this process."""
    monkeypatch.setattr(flows_step, "launch", launch_here)
    asked = ask(tmp_path, tree)

    def toy(arguments: Any) -> Request:
        return replace(asked, scale=arguments.scale, overrides=tuple(arguments.set))

    for module in (seeds_command, sweep_command):
        monkeypatch.setattr(module, "request_of", toy)
        monkeypatch.setattr(module, "conduct", conduct)
    return asked


def fairway(asked: Request, *words: str) -> int:
    return main([*words, "--store", asked.store])


def test_seeds_print_a_table_a_page_and_one_json_object(asked: Request, capsys: pytest.CaptureFixture[str]):
    assert fairway(asked, "seeds", asked.recipe, "--seeds", "1,2") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "toy · full · sliding: every run"
    assert [line.split("\t")[:2] for line in lines[2:4]] == [["1", "completed"], ["2", "completed"]]
    assert "note: the challenge asks for 3 seeds or more; this set has 2" in lines
    assert "seed 2 (2 of 2)" in printed.err
    assert fairway(asked, "seeds", asked.recipe, "--seeds", "1,2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    page = Path(found["report"])
    assert found["set"] in page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "plot.png", "table.md"]
    assert fairway(asked, "seeds") == 0
    mean = f"{found['scores']['sliding']['mean']:.5f}"
    line = capsys.readouterr().out.splitlines()[1].split("\t")
    assert line[:5] == [found["set"], "2/2 seeds", "sliding", mean, "completed"]
    assert fairway(asked, "board", "--json") == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["rows"][0]["seeds"] == [1, 2]
    assert fairway(asked, "compare", found["set"], found["set"]) == 0
    assert "no field of the recipes differs\nevery step is the same artifact" in capsys.readouterr().out


def test_a_seed_without_a_result_is_a_failure_that_is_printed(
    asked: Request, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def broken(prepared: Prepared) -> Any:
        if prepared.session.seed == 2:
            raise StageFailed("train", "crash", "loss is nan", tmp_path / "log")
        return conduct(prepared)

    monkeypatch.setattr(seeds_command, "conduct", broken)
    assert fairway(asked, "seeds", asked.recipe, "--seeds", "1,2") == 1
    out = capsys.readouterr().out
    assert "2\tfailed\t" in out
    assert "loss is nan" in out

    def stop(prepared: Prepared) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(seeds_command, "conduct", stop)
    assert fairway(asked, "seeds", asked.recipe, "--seeds", "1,2") == 130


def test_a_sweep_by_grid_or_file_ends_in_one_table(asked: Request, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert fairway(asked, "sweep", asked.recipe, "--grid", "quantize.matrices.bits=5,6") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[2:4]] == ["bits=5 (base)", "bits=6"]
    assert fairway(asked, "board") == 0
    assert {line.split("\t")[2] for line in capsys.readouterr().out.splitlines()[2:]} == {"toy: bits=5", "toy: bits=6"}
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "toy.toml"\n[[point]]\nname = "one"\npublished = 1.1\n[[left_out]]\nname = "two"\n')
    assert fairway(asked, "sweep", str(path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["points"][0]["n"], found["points"][0]["published"], found["left_out"]) == (1, 1.1, [{"name": "two"}])
    assert "left out" in (Path(found["report"]).parent / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seeds", "RECIPE", "--seeds", "1,x"), "--seeds takes whole numbers from 0; got '1,x'"),
        (("seeds", "RECIPE", "--reference", "1439"), "did you mean '1493'"),
        (("sweep", "RECIPE"), "is a recipe and there is no --grid"),
        (("sweep", "RECIPE", "--grid", "quantize.matrice.bits=5"), "did you mean 'matrices'"),
        (("board", "--policy", "mine"), "--policy is strict or board; got 'mine'"),
        (("compare", "pr39", "pr398"), "did you mean 'pr398'"),
    ],
)
def test_what_is_asked_wrongly_is_a_users_error_and_runs_nothing(
    asked: Request, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
):
    assert fairway(asked, *(asked.recipe if word == "RECIPE" else word for word in words)) == 3
    assert message in capsys.readouterr().err
    assert not (Path(asked.store) / "runs").exists()


@pytest.mark.slow
def test_real_seeds_share_what_no_seed_changes_and_a_second_call_runs_nothing(tmp_path: Path):
    """The real stages at smoke scale, under a Prefect server of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**kept, "PREFECT_HOME": str(tmp_path / "prefect")}
    words = ("seeds", "quickstart", "--scale", "smoke", "--seeds", "1,2", "--json")

    def call() -> tuple[dict[str, Any], str]:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    first, progress = call()
    lines = progress.splitlines()
    assert sum(line.split() == ["vocabulary", "runs"] for line in lines) == 1
    assert sum(line.split() == ["train", "runs"] for line in lines) == 2
    assert len(set(first["scores"]["ttt"]["values"].values())) == 2
    assert first["scores"]["sliding"]["mean"] == pytest.approx(sum(first["scores"]["sliding"]["values"].values()) / 2)
    again, progress = call()
    assert not any(line.endswith(" runs") for line in progress.splitlines())
    assert {**again, "report": ""} == {**first, "report": ""}
