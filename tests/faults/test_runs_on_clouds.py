"""Whole runs whose store is Google's or Azure's: stages in their own processes, a second run that starts none."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from toyriver import make_tree
from toyrun import request, run_toy, write_recipe

from artifacts.backend import open_backend
from artifacts.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty store on a server of our own."""
    for package in ("gcsfs", "gcp_storage_emulator") if request.param == "gs" else ("adlfs",):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"NO TESTS OF {request.param}://: {package} is not installed")
    from objectstores import azure, azurite, google

    program = azurite()
    if request.param == "az" and program is None:
        pytest.skip(
            "NO TESTS OF az://: Azurite is not installed; `npm install azurite@3.35.0` in this checkout brings it"
        )
    with google("runs") if request.param == "gs" else azure(str(program)) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = f"{request.param}://runs/{uuid4().hex}"
        filesystem = open_backend(store)._fs  # type: ignore[attr-defined]
        filesystem.clear_instance_cache()
        if request.param == "az":
            open_backend(store)._fs.mkdir("runs")  # type: ignore[attr-defined]
        yield store
        filesystem.clear_instance_cache()


def test_a_run_ends_is_found_again_and_mends_what_was_damaged(cloud: str, tmp_path: Path, monkeypatch):
    write_recipe(tmp_path)
    tree = make_tree(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = request(tmp_path, tree, store=cloud)
    first = run_toy(asked)
    assert {o.state for o in first} == {"ran"}
    assert {o.state for o in run_toy(asked)} == {"cached"}
    assert Store.open(cloud).verify() == []
    archive = next(o.record for o in first if o.step.label == "compress").files[0]
    path = f"objects/{archive.sha256[:2]}/{archive.sha256}"
    backend = open_backend(cloud)
    backend.write(path, b"x" + backend.read(path)[1:])
    assert [finding.path for finding in Store.open(cloud).verify()] == [path]
    tmp_path.joinpath("cache").rename(tmp_path / "cache-of-the-first-host")
    again = run_toy(request(tmp_path, tree, store=cloud, force=("evaluate",)))
    assert "compress" in {o.step.label for o in again if o.state == "ran"}
    assert {finding.kind for finding in Store.open(cloud).verify()} <= {"dangling name"}
