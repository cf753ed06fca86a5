"""Sweeps on the toy river: every point checked first, what is shared runs once, failed points stand in the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyrun import launch_here
from toyseeds import Quiet, ask, conduct, scored_tree

from artifacts.store import Store
from configs.load import FOLDER
from flows import step as flows_step
from flows.commands.sweep import tables, write_report
from flows.launch import Interrupted, StageFailed
from flows.points import Sweep, grid_points, is_sweep, parse_grid, read_sweep
from flows.prepare import Prepared, Request
from flows.sweep import check_points, run_sweep, sweep_result
from stages.contract import StageError

SWEEPS = sorted((FOLDER / "sweeps").glob("*.toml"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One toy tree for all tests here that leave it as it is."""
    return scored_tree(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def asked(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The toy recipe, in a fresh store; stages run in this process."""
    monkeypatch.setattr(flows_step, "launch", launch_here)
    return ask(tmp_path, tree)


def grid(asked: Request, *axes: str) -> Sweep:
    return Sweep(name="toy", recipe=asked.recipe, points=grid_points([parse_grid(text) for text in axes]))


def run(asked: Request, sweep: Sweep, seeds: tuple[int, ...] = (), conduct: Any = conduct, quiet: Any = None) -> dict:
    document, sets = run_sweep(sweep, check_points(sweep, asked), seeds, conduct, (quiet or Quiet()).show)
    return json.loads(json.dumps(sweep_result(Store.open(asked.store), document.document, sets)))


@pytest.mark.parametrize("scale", ["smoke", "full"])
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_every_sweep_is_a_valid_recipe_and_another_one(path: Path, scale: str):
    sweep = read_sweep(path)
    ready = check_points(sweep, Request(recipe=sweep.recipe, scale=scale))
    resolved = [each.loaded.recipe.model_dump_json() for each in ready]
    assert len(set(resolved)) == len(sweep.points) > 1
    assert all(each.protocol for each in ready)


def test_the_ablation_of_398_has_every_row_of_its_table():
    sweep = read_sweep(FOLDER / "sweeps" / "pr398.toml")
    printed = [1.1242, 1.1244, 1.28, None, 1.1249, 1.1262, 1.1262, 1.1250, 1.1274, 1.1488, 1.1213, 1.1350]
    ours = [point.published for point in sweep.points] + [each["published"] for each in sweep.left_out]
    assert sorted(x for x in ours if x) == sorted(x for x in printed if x)
    assert sum(point.name == "batch 524K" for point in sweep.points) == 1
    full = {each.point.name: each.loaded.recipe for each in check_points(sweep, Request(recipe="", scale="full"))}
    assert full["causal"].evaluate["published"].protocol == "ttt"
    assert full["ttt 20 epochs, freeze 0"].evaluate["published"].pre_eval.first.freeze == ()
    assert full["ttt 20 epochs, freeze 2"].evaluate["published"].pre_eval.first.freeze == ("blocks.0.*", "blocks.1.*")


def test_a_grid_is_every_combination_and_shared_stages_run_once(asked: Request):
    quiet = Quiet()
    found = run(asked, grid(asked, "quantize.matrices.bits=5,6", "compress.level=3,9"), quiet=quiet)
    assert [line["name"] for line in found["points"]] == [
        "bits=5 level=3", "bits=5 level=9", "bits=6 level=3", "bits=6 level=9"
    ]  # fmt: skip
    ran = {stage: quiet.ran(stage) for stage in ("corpus", "tokenize", "train", "average", "quantize", "compress")}
    assert ran == {"corpus": 1, "tokenize": 3, "train": 1, "average": 1, "quantize": 2, "compress": 4}
    assert found["state"] == "completed"
    assert any("one seed" in note for note in found["notes"])


def test_points_are_compared_with_the_base_in_pairs_and_p_knows_how_many(asked: Request):
    found = run(asked, grid(asked, "quantize.matrices.bits=5,6,7"), (1, 2))
    base, *others = found["points"]
    assert (base["p"], base["difference"]) == (None, None)
    for line in others:
        assert line["method"] == "paired"
        assert line["difference"] == pytest.approx(line["mean"] - base["mean"])
    least, most = sorted(others, key=lambda line: line["p"])
    assert least["p_holm"] == pytest.approx(min(1, 2 * least["p"]))
    assert most["p_holm"] == pytest.approx(max(least["p_holm"], most["p"]))
    assert "adjusted for 2 comparisons" in found["notes"][0]


def test_a_point_that_fails_stands_in_the_table_and_the_next_call_goes_on(asked: Request, tmp_path: Path):
    def broken(prepared: Prepared) -> Any:
        if prepared.loaded.recipe.quantize.matrices.bits == 5:
            raise StageFailed("quantize", "crash", "codes overflow\nat line 3", tmp_path / "log")
        return conduct(prepared)

    sweep = grid(asked, "quantize.matrices.bits=5,6")
    found = run(asked, sweep, conduct=broken)
    assert [(line["state"], line["n"]) for line in found["points"]] == [("incomplete", 0), ("completed", 1)]
    assert found["state"] == "incomplete"
    (table, _) = tables(found)
    assert "codes overflow" in table.texts()[0][-1]
    page = write_report(found, tmp_path)
    assert "codes overflow" in page.read_text()
    assert (page.parent / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert "| bits=6 | 1 |" in (page.parent / "table.md").read_text()
    quiet = Quiet()
    again = run(asked, sweep, quiet=quiet)
    assert quiet.ran("train") == 0
    assert (again["state"], again["sweep"]) == ("completed", found["sweep"])
    assert again["points"][0]["error"] == ""


def test_a_stopped_sweep_says_so_and_goes_on(asked: Request):
    def stop(prepared: Prepared) -> Any:
        if prepared.loaded.recipe.quantize.matrices.bits == 6:
            raise Interrupted("stopped")
        return conduct(prepared)

    sweep = grid(asked, "quantize.matrices.bits=5,6,7")
    with pytest.raises(Interrupted):
        run(asked, sweep, conduct=stop)
    states = {each["id"]: each["state"] for each in Store.open(asked.store).list_sets()}
    assert sorted(states.values()) == ["cancelled", "cancelled", "completed", "declared"]
    assert run(asked, sweep)["state"] == "completed"


def test_a_wrong_path_or_value_is_refused_in_the_words_of_set_before_anything_runs(asked: Request):
    for axis, message in (
        ("quantize.matrice.bits=5,6", r"(?s)did you mean 'matrices'\?.*nothing has run"),
        ("quantize.matrices.bits=5,3", r"quantize\.matrices\.bits is 4, 5, 6, 7, 8, 16 or 32; got 3"),
    ):
        with pytest.raises(StageError, match=message):
            run(asked, grid(asked, axis))
    assert Store.open(asked.store).list_sets() == []
    with pytest.raises(StageError, match=r"--grid takes path=value,value; got 'train\.steps='"):
        parse_grid("train.steps=")
    with pytest.raises(StageError, match="--set takes path=value"):
        parse_grid("train steps=1")
    with pytest.raises(StageError, match="at most 1000 points"):
        grid_points([("a", range(40)), ("b", range(40))])


def test_values_of_a_grid_are_toml_and_bare_words_are_text():
    assert parse_grid("a.b=1,2.5,true") == ("a.b", [1, 2.5, True])
    assert parse_grid("average.kind=ema,raw") == ("average.kind", ["ema", "raw"])
    assert parse_grid("a=[1, 2],[]") == ("a", [[1, 2], []])
    assert [point.overrides for point in grid_points([("a", ["ema", [1, 2], True])])] == [
        ("a=ema",), ("a=[1, 2]",), ("a=true",)
    ]  # fmt: skip


def test_a_sweeps_file_says_what_is_wrong_in_it(tmp_path: Path):
    path = tmp_path / "mine.toml"
    for text, message in (
        ('recipe = "pr398"\n[grdi]\n', "grdi is no field of .*did you mean 'grid'"),
        ('recipe = "pr398"\n', r"a sweep has a recipe and \[grid\] or \[\[point\]\]"),
        ('recipe = "pr398"\n[[point]]\nnam = "x"\n', "nam is no field of point 1 .*did you mean 'name'"),
        ('recipe = "pr398"\n[[point]]\nname = "x"\nset = [1]\n', "lists overrides as text"),
        ('recipe = "pr398"\n[[point]]\nname = "x"\n[[point]]\nname = "x"\n', "'x' twice"),
        ('recipe = "pr398"\nbase = "y"\n[[point]]\nname = "x"\n', "base names a point"),
        ("recipe = ", "readable TOML"),
    ):
        path.write_text(text)
        with pytest.raises(StageError, match=message):
            read_sweep(path)
    path.write_text('recipe = "pr398"\nset = ["train.steps=5"]\n[grid]\n"quantize.matrices.bits" = [5, 6]\n')
    assert is_sweep(path)
    assert [point.overrides for point in read_sweep(path).points] == [
        ("train.steps=5", "quantize.matrices.bits=5"), ("train.steps=5", "quantize.matrices.bits=6")
    ]  # fmt: skip
    assert not is_sweep(FOLDER / "recipes" / "pr398.toml")


def test_the_scales_own_overrides_and_those_of_the_command_have_the_last_word(asked: Request):
    sweep = read_sweep(FOLDER / "sweeps" / "pr398.toml")
    told = {
        scale: check_points(sweep, replace(asked, scale=scale, overrides=("train.z_loss=0.5",)))[1].loaded.recipe
        for scale in ("smoke", "full")
    }
    assert [told[scale].train.network.memory_tokens for scale in ("smoke", "full")] == [8, 64]
    assert {recipe.train.z_loss for recipe in told.values()} == {0.5}
