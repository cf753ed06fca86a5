"""Stages open only what they are given, call nobody and read no variable of their own; and the watch sees trespass."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyriver import behave, make_tree
from toyrun import run_toy

import flows.step
from flows.launch import Job, StageFailed, Watch, launch
from flows.prepare import Request
from stages.compress.config import Config

HOOK = Path(__file__).resolve().parents[1] / "support" / "hermetic"
RECIPE, SCALE = "base11", "smoke"
STAGES = (
    *("corpus", "vocabulary", "tokenize", "train", "average", "quantize", "compress", "bundle", "weigh", "evaluate"),
    *("overlap", "audit"),
)


def watched(job: Job, folder: Path, log: Path, watch: Watch, seen: Path) -> dict[str, Any]:
    """`launch` with the watch in the stage's process."""
    rules = {
        "write": [str(folder)],
        "read": [str(path) for path in job.inputs.values()] + [str(job.source_root)],
        "code": str(job.source_root.resolve()),
        "log": str(seen),
    }
    environment = {**job.environment, "HERMETIC": json.dumps(rules), "PYTHONPATH": f"{HOOK}:{job.source_root}"}
    # Inputs are links into the store: what they point to may be read.
    rules["read"] += sorted({str(p.resolve().parent) for path in job.inputs.values() for p in path.rglob("*")})
    environment["HERMETIC"] = json.dumps(rules)
    with pytest.MonkeyPatch.context() as patch:
        # A test that compiled in this process has left the place of its cache in the environment.
        for name in [name for name in os.environ if name.startswith(("TORCHINDUCTOR_", "TRITON_"))]:
            patch.delenv(name)
        return launch(replace(job, environment=environment), folder, log, watch)


def violations(seen: Path) -> list[str]:
    lines = [json.loads(line) for line in seen.read_text(encoding="utf-8").splitlines()]
    assert lines, "the watch did not start"
    return [f"{line['what']}: {line['detail']}" for line in lines if line["what"] != "locked"]


@pytest.fixture
def try_it(tmp_path: Path) -> Callable[[str], list[str]]:
    """What the watch sees of a toy that does something."""
    tree = make_tree(tmp_path / "tree")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "given").write_text("given", encoding="utf-8")
    (tmp_path / "elsewhere").write_text("not given", encoding="utf-8")
    job = Job(
        stage="compress",
        config=Config().model_dump(mode="json"),
        inputs={"quantized": tmp_path / "in"},
        source_root=tree,
    )

    def run(body: str) -> list[str]:
        behave(tree, "compress", body.replace("HERE", str(tmp_path)))
        with contextlib.suppress(StageFailed):
            watched(job, tmp_path / "job", tmp_path / "log", Watch(), tmp_path / "seen")
        return violations(tmp_path / "seen")

    return run


def test_a_stage_that_keeps_to_its_folders_is_clean(try_it: Callable[[str], list[str]]):
    assert try_it('(runtime.scratch / "x").write_text("x")\nopen("HERE/in/given").read()\nos.environ.get("RANK")') == []


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ('open("HERE/elsewhere").read()', "read: "),
        ('open("HERE/new", "w").write("x")', "write: "),
        ('open("HERE/in/given", "a").write("x")', "write: "),
        ('os.listdir("HERE")', "read: "),
        ('os.environ.get("SOME_SWITCH")', "variable: SOME_SWITCH"),
        ('os.getenv("SOME_SWITCH")', "variable: SOME_SWITCH"),
        ('import socket\nsocket.create_connection(("127.0.0.1", 9), timeout=1)', "network: "),
        ('import socket\nsocket.getaddrinfo("example.org", 80)', "network: "),
    ],
)
def test_the_watch_sees_each_kind_of_trespass(try_it: Callable[[str], list[str]], body: str, seen: str):
    assert any(line.startswith(seen) for line in try_it(body))


def test_the_kernel_refuses_what_python_does_not_see(try_it: Callable[[str], list[str]], tmp_path: Path):
    """As a library in C++ would open it."""
    try_it(
        'import ctypes\nfound = ctypes.CDLL(None).open(b"HERE/elsewhere", 0)\n(out / "found").write_text(str(found))'
    )
    if '{"what": "locked", "detail": "True"}' not in (tmp_path / "seen").read_text(encoding="utf-8"):
        pytest.skip("this kernel has no Landlock: only what Python opens is watched")
    assert (tmp_path / "job" / "out" / "found").read_text(encoding="utf-8") == "-1"


@pytest.fixture(scope="module")
def every_stage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Violations by stage of a whole run of the real stages."""
    folder = tmp_path_factory.mktemp("hermetic")
    found: dict[str, list[str]] = {}

    def launch_watched(job: Job, job_folder: Path, log: Path, watch: Watch) -> dict[str, Any]:
        seen = folder / f"{job_folder.name}.seen"
        try:
            return watched(job, job_folder, log, watch, seen)
        finally:
            found.setdefault(job.stage, []).extend(violations(seen))

    patch = pytest.MonkeyPatch()
    patch.setattr(flows.step, "launch", launch_watched)
    run_toy(Request(recipe=RECIPE, scale=SCALE, store=str(folder / "store"), cores=2))
    patch.undo()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_opens_only_what_it_is_given(every_stage: dict[str, list[str]], stage: str):
    assert every_stage[stage] == []
