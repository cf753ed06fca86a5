"""What a notebook opens is what a run made, and what docs/notebook.md says works as it stands there."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toyriver import make_tree
from toyrun import request, run_in_one_thread, write_recipe

import fairway
import flows.step
from artifacts.errors import NotFound
from flows import notebook
from flows.closure import ROOT, SourceTree
from flows.session import Outcome
from stages.contract import StageError

PAGE = ROOT / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """A store with a toy run, and its outcomes."""
    folder = tmp_path_factory.mktemp("notebook")
    write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        from toyrun import launch_here

        patch.setattr(flows.step, "launch", launch_here)
        return folder / "store", run_in_one_thread(request(folder, make_tree(folder / "tree")))


def test_an_artifact_is_opened_by_its_name_and_read(made: tuple[Path, list[Outcome]]):
    store, outcomes = made
    train = next(outcome for outcome in outcomes if outcome.step.stage == "train")
    opened = fairway.open(train.artifact, store)
    assert opened.record == train.record
    assert opened.report == {"toy": "train"}
    assert set(opened.roles) == {"raw", "ema", "snapshots", "curve"}
    (line,) = opened.curve
    assert line["train_loss"] == 3.0
    file = opened.files("raw")[0]
    assert (opened.path("raw") / file.path).read_bytes() == opened.read("raw")
    assert {each.record.label for each in opened.inputs()["shards"]} == {
        "tokenize[train-00000]",
        "tokenize[train-00001]",
    }


def test_what_is_asked_wrongly_is_told(made: tuple[Path, list[Outcome]]):
    store, _ = made
    with pytest.raises(NotFound):
        fairway.open("toy/full/1337/train@9", store)
    with pytest.raises(StageError, match="raw"):
        fairway.open("toy/full/1337/train", store).read("weights")
    with pytest.raises(StageError, match="it has"):
        _ = fairway.open("toy/full/1337/quantize", store).curve
    with pytest.raises(StageError, match="no field"):
        fairway.run("quickstart", overrides=["train.stepz=1"], store=store)


def test_two_artifacts_are_compared_as_on_the_command_line(made: tuple[Path, list[Outcome]]):
    store, outcomes = made
    scored = [outcome.artifact for outcome in outcomes if outcome.step.stage == "evaluate"]
    assert fairway.compare(scored[0], scored[1], store=store)["notes"] == []
    assert [run["state"] for run in fairway.runs(store)] == ["completed"]


def test_a_notebook_shows_tables_and_escapes_what_is_in_them(made: tuple[Path, list[Outcome]]):
    store, outcomes = made
    train = next(outcome for outcome in outcomes if outcome.step.stage == "train")
    shown = fairway.open(train.artifact, store)._repr_html_()
    assert ">raw</td>" in shown
    assert f"train {train.record.key[:12]}" in shown
    assert ">toy</td>" in fairway.runs(store)._repr_html_()
    difference = fairway.compare("pr714", "pr1232", store=store)
    assert ">compress.codec</td>" in difference._repr_html_()
    score = {"bpb": 1.25, "nats_per_token": 2.0, "tokens": 7, "bytes": 9, "seconds": 1.0, "marks": ["<b>"]}
    result = {"run": "r", "recipe": "<i>", "scale": "smoke", "seed": 1, "scores": {"sliding": score}, "audit": {}}
    shown = fairway.Result({**result, "bytes": {}, "stages": [{"state": "ran"}]})._repr_html_()
    assert ">1.2500</td>" in shown
    assert "1 of 1 steps ran; run r" in shown
    assert "&lt;i&gt;" in shown
    assert not re.search("<[bi]>", shown)


def test_the_module_is_the_notebooks_and_is_documented_and_typed():
    assert fairway.__all__ == notebook.__all__
    for name in fairway.__all__:
        member = getattr(fairway, name)
        assert member is getattr(notebook, name)
        assert member.__doc__
    for name in ("compare", "open", "run", "runs"):
        signature = inspect.signature(getattr(fairway, name))
        assert signature.return_annotation is not inspect.Signature.empty
        assert signature.parameters["store"].default == ".fairway"


def test_importing_it_imports_nothing_slow():
    slow = ("torch", "prefect", "numpy", "scipy", "pyarrow", "matplotlib", "fsspec")
    code = f"import sys, fairway; print(sorted(set({slow!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_key_and_no_published_source_has_the_module():
    tree = SourceTree(ROOT)
    for module in ("flows.worker", "stages.train", "stages.evaluate", "stages.submission"):
        files = tree.closure(module).files
        assert files
        assert not {"fairway.py", "flows/notebook.py", "flows/cells.py"} & set(files)


def page_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_is_of_python_that_compiles():
    assert len(page_blocks()) == 3
    for block in page_blocks():
        compile(block, str(PAGE), "exec")


@pytest.mark.slow
def test_every_block_of_the_page_runs_as_a_notebook_would_run_it(tmp_path: Path):
    """Cells run one after the other in one namespace, inside an event loop, as Jupyter's do."""
    cells = [*page_blocks(), "import json; print(json.dumps([train.roles, len(train.curve), difference['fields']]))"]
    cells += ["print(json.dumps([line['step'] for line in difference['stages'] if not line['equal']]))"]
    cells += ["assert 'sliding' in result._repr_html_() and 'bits' in difference._repr_html_()"]
    script = tmp_path / "cells.py"
    script.write_text(
        "import asyncio\n"
        f"cells = {cells!r}\n"
        "async def kernel():\n"
        "    scope = {'__name__': '__main__'}\n"
        "    for cell in cells:\n"
        "        exec(cell, scope)\n"
        "asyncio.run(kernel())\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "OMP_NUM_THREADS": "2"}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told, again = map(json.loads, done.stdout.splitlines()[-2:])
    assert told[0] == ["curve", "ema", "raw", "snapshots"]
    assert told[1] > 30
    assert told[2] == [{"path": "quantize.matrices.bits", "a": 6, "b": 5}]
    assert again[0] == "quantize"
    assert "train" not in again
    assert (tmp_path / ".fairway" / "records").is_dir()
