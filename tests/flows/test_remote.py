"""A stage by value: it survives the journey, and what was changed on the way is refused."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyriver import make_tree
from toyrun import request, write_recipe

from artifacts.errors import BadName
from artifacts.keyring import Credentials, hang
from artifacts.store import Store
from flows.closure import SourceTree
from flows.drive import drive
from flows.prepare import prepare
from flows.remote import Assignment, assign, check_components, config_type, publish_source, unpack_source
from flows.river import not_known, river
from flows.step import hit_or_run
from stages.contract import StageError


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Assignment, Path]:
    """The assignment of a toy run's train, with its source in the store; and the store's folder."""
    folder = tmp_path_factory.mktemp("remote")
    write_recipe(folder)
    tree = make_tree(folder / "tree")
    with prepare(request(folder, tree, until="train")) as prepared, ThreadPoolExecutor(4) as pool:
        session = prepared.session
        steps: list[Any] = []

        def submit(step: Any) -> Any:
            steps.append(step)
            return pool.submit(hit_or_run, step, session)

        drive(prepared.loaded.recipe, prepared.outside, session, submit, "train")
        step = steps[-1]
        key, components = session.key(step)
        source = publish_source("train", session)
        return assign(step, key, components, session, source), folder / "store"


def test_an_assignment_survives_the_journey(sent: tuple[Assignment, Path]):
    assignment, _ = sent
    arrived = Assignment.from_json(json.loads(json.dumps(assignment.to_json())))
    assert arrived == assignment
    step = arrived.step()
    assert (step.stage, step.seed, step.label) == ("train", 1337, "train")
    assert step.config == config_type("train").model_validate(assignment.config)


def test_an_assignment_names_a_block_and_a_worker_that_knows_none_is_not_told_of_it(sent: tuple[Assignment, Path]):
    assignment, _ = sent
    assert "credentials" not in assignment.to_json()  # workers of older checkouts take it as before
    named = replace(assignment, credentials="fairway-s3/lab")
    assert named.to_json()["credentials"] == "fairway-s3/lab"
    assert Assignment.from_json(named.to_json()) == named


def test_the_block_of_the_stores_key_ring_travels_by_name(tmp_path: Path):
    write_recipe(tmp_path)
    with prepare(request(tmp_path, make_tree(tmp_path / "tree"), until="corpus")) as prepared:
        session = prepared.session
        hang(session.store.url, Credentials("fairway-s3/lab", {"secret": "canary-of-the-journey"}))
        step = next(river(prepared.loaded.recipe, 1, prepared.outside, {}, not_known))
        sent = json.dumps(assign(step, *session.key(step), session, "source").to_json())
    assert '"fairway-s3/lab"' in sent
    assert "canary-of-the-journey" not in sent


def test_the_published_source_has_all_that_keys_and_runs_the_stage_and_not_the_rest(
    sent: tuple[Assignment, Path], tmp_path: Path
):
    assignment, store = sent
    unpack_source(Store.open(store).read_object(assignment.source), tmp_path / "tree")
    tree = SourceTree(tmp_path / "tree")
    assert tree.stage("train").digests == assignment.components["code"]
    assert tree.closure("flows.worker").digests
    assert (tmp_path / "tree" / "configs" / "introduced.json").is_file()
    assert not (tmp_path / "tree" / "stages" / "quantize" / "stage.py").exists()
    assert not (tmp_path / "tree" / "flows" / "pipeline.py").exists()


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "a/../../outside.py", "a//b.py", "..\\outside.py"])
def test_a_source_that_leaves_its_folder_is_refused(tmp_path: Path, name: str):
    member = tarfile.TarInfo(name)
    member.size = 1
    with pytest.raises(StageError, match="stay in its folder"):
        unpack_source(packed(member, b"x"), tmp_path / "tree")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_source_is_plain_files_only(tmp_path: Path, kind: bytes):
    member = tarfile.TarInfo("module.py")
    member.type, member.linkname = kind, "other.py"
    with pytest.raises(StageError, match=r"plain files.*module\.py"):
        unpack_source(packed(member), tmp_path / "tree")


def packed(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def test_files_that_are_not_those_of_the_digest_are_refused(sent: tuple[Assignment, Path]):
    assignment, _ = sent
    shards = assignment.inputs["shards"]
    fewer = {**assignment.inputs, "shards": {**shards, "files": shards["files"][:1]}}
    with pytest.raises(StageError, match="shards"):
        replace(assignment, inputs=fewer).step()
    path, sha256, size = shards["files"][0]
    escaped = {**assignment.inputs, "shards": {**shards, "files": [[f"../{path}", sha256, size]]}}
    with pytest.raises(BadName):
        replace(assignment, inputs=escaped).step()


def test_another_key_is_refused_and_the_difference_is_named(sent: tuple[Assignment, Path]):
    assignment, _ = sent
    check_components(assignment, assignment.components)
    other = {**assignment.components, "libraries": {**assignment.components["libraries"], "torch": "1.0"}}
    with pytest.raises(StageError, match=r'libraries.*"torch": "1\.0"'):
        check_components(assignment, other)
    with pytest.raises(StageError, match="not that of its components"):
        check_components(replace(assignment, key="0" * 64), assignment.components)


def test_an_assignment_of_another_version_is_refused(sent: tuple[Assignment, Path]):
    raw = sent[0].to_json()
    with pytest.raises(StageError, match="format"):
        Assignment.from_json({**raw, "format": 2})
    with pytest.raises(StageError, match="speed"):
        Assignment.from_json({**raw, "speed": 3})


def test_only_stages_of_the_river_have_a_configuration():
    assert config_type("evaluate").SPEC.name == "evaluate"
    with pytest.raises(StageError, match="nonsense"):
        config_type("nonsense")
