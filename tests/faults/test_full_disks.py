"""A disk is full: the store's under a run of this machine, and the scratch of a worker in the middle of a stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import LIMIT_S, Lab, wait_for
from smalldisk import fill, small_disk
from toyriver import behave, behaving, make_tree
from toyrun import write_recipe
from weather import Attempts, all_sound, changed, content, result, small_recipe, undisturbed

from artifacts.store import Store

# As a stage does that has much to write: into scratch, and then away with it.
WRITES = """
with open(runtime.scratch / "big.bin", "wb") as big:
    for _ in range(30):
        big.write(bytes(100_000))
        big.flush()
(runtime.scratch / "big.bin").unlink()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Eight megabytes."""
    with small_disk(tmp_path / "disk", 8_000_000) as disk:
        yield disk


def left_over(folder: Path) -> list[str]:
    """Files that no complete store has: temporary ones, halves, scratch."""
    wrong = ("/tmp/", "/scratch/", ".part", ".tmp", ".restoring")
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(word in f"/{path}" for word in wrong)]


def run(base: Path, disk: Path) -> subprocess.CompletedProcess[str]:
    """`fairway run` whose store is on the disk."""
    words = [sys.executable, "-m", "flows.cli", "run", "toy.toml", "--store", str(disk / "store"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(base / "tree")}
    return subprocess.run(
        words, cwd=base, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def states(printed: str) -> dict[str, set[str]]:
    """Stage -> states of its parts, of what `run --json` printed."""
    found: dict[str, set[str]] = {}
    for stage in json.loads(printed)["stages"]:
        found.setdefault(stage["stage"], set()).add(stage["state"])
    return found


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_says_which_and_goes_on_when_there_is_room(disk: Path, tmp_path: Path):
    write_recipe(tmp_path)
    behave(make_tree(tmp_path / "tree"), "train", WRITES)
    (disk / "store").mkdir()
    filler = fill(disk, but_bytes=1_500_000)
    full = run(tmp_path, disk)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "train failed: a stage writes to this machine's disk" in full.stderr
    assert str(disk / "store" / "scratch") in full.stderr
    assert "bytes of the disk of" in full.stderr
    assert "make room" in full.stderr
    assert "Traceback" not in full.stderr
    assert left_over(disk / "store") == []
    assert Store.open(disk / "store").verify() == []
    done = [document["state"] for document in Store.open(disk / "store").list_runs()]
    assert done == ["failed"]

    filler.unlink()
    again = run(tmp_path, disk)
    assert again.returncode == 0, again.stderr
    ended = states(again.stdout)
    assert [ended[stage] for stage in ("corpus", "vocabulary", "tokenize", "train")] == [{"cached"}] * 3 + [{"ran"}]
    assert Store.open(disk / "store").verify() == []
    undisturbed_run = run(tmp_path, tmp_path / "roomy")
    assert undisturbed_run.returncode == 0, undisturbed_run.stderr
    assert content(disk / "store") == content(tmp_path / "roomy" / "store")


@pytest.mark.slow
@pytest.mark.parametrize("left_bytes", [0, 200_000])
def test_a_run_that_finds_the_disk_full_leaves_nothing_half_and_its_end_is_known_later(
    disk: Path, tmp_path: Path, left_bytes: int
):
    write_recipe(tmp_path)
    make_tree(tmp_path / "tree")
    first = run(tmp_path, disk)
    assert first.returncode == 0, first.stderr
    behave(tmp_path / "tree", "tokenize", "print('another')")
    filler = fill(disk, but_bytes=left_bytes)
    full = run(tmp_path, disk)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "make room" in full.stderr
    assert "are free" in full.stderr
    assert "fault of Fairway" not in full.stderr
    assert "Traceback" not in full.stderr
    assert Store.open(disk / "store").verify() == []

    filler.unlink()
    again = run(tmp_path, disk)
    assert again.returncode == 0, again.stderr
    assert states(again.stdout)["corpus"] == {"cached"}
    assert left_over(disk / "store") == []
    assert "running" not in [document["state"] for document in Store.open(disk / "store").list_runs()]
    assert Store.open(disk / "store").verify() == []


@pytest.mark.slow
def test_a_worker_whose_scratch_is_full_is_named_and_the_next_run_goes_on(lab: Lab, disk: Path, tmp_path: Path):
    recipe = small_recipe(lab)
    attempts = Attempts(lab)
    own = lab.gpu.folder
    lab.gpu.folder = disk / "gpu"  # its working folder, where scratch is
    (disk / "gpu" / "work").mkdir(parents=True)
    writes = f"# {tmp_path}\n{WRITES}print('wrote')\nprint({str(tmp_path)!r})"
    try:
        with behaving(lab.submitter.tree, "train", writes), changed(lab.gpu, "gpu", 1, **elsewhere(tmp_path)):
            filler = fill(disk, but_bytes=2_000_000)
            state = lab.ended(lab.score(toml=recipe, scale="smoke"))
            assert state["type"] == "FAILED"
            assert "worker gpu on " in state["message"]
            assert "train failed: a stage writes to this machine's disk" in state["message"]
            assert str(disk / "gpu" / "work" / ".fairway" / "scratch") in state["message"]
            assert "are free; make room" in state["message"]
            assert set(attempts.states()) == {"CRASHED"}
            assert len(attempts.all()) == 4  # another machine might have had room
            scratch = disk / "gpu" / "work" / ".fairway" / "scratch"
            wait_for(lambda: not [each for each in scratch.iterdir() if each.is_dir()], "its scratch is empty")
            all_sound(lab.store)

            filler.unlink()
            assert lab.ended(lab.score(toml=recipe, scale="smoke"))["type"] == "COMPLETED"
            assert attempts.states()[-1] == "COMPLETED"
            assert result(lab, lab.document()) == undisturbed(lab, recipe)
            lab.gpu.folder = own  # where it starts again
    finally:
        lab.gpu.folder = own
    all_sound(lab.store)


def elsewhere(folder: Path) -> dict[str, str]:
    """Homes that stay off the small disk."""
    return {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "PREFECT_HOME": str(folder / "prefect")}
