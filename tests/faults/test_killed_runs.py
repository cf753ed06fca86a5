"""A run that is killed anywhere leaves nothing half, and the next one ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of `fsync` take minutes on a disk, and a kill undoes none."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def kill_everywhere(folder: Path, shard: int, shards: int) -> int:
    """The number of crash points of a whole run, of which this shard was tried."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_run.py")), str(folder), str(shard), str(shards)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.stdout.write(done.stdout)
    return int(re.search(r"crash points: (\d+)", done.stdout)[1])


def test_a_run_killed_at_every_47th_store_call_ends_well(memory: Path):
    assert kill_everywhere(memory, 11, 47) > 200


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(8))
def test_a_run_killed_at_every_store_call_ends_well(memory: Path, shard: int):
    assert kill_everywhere(memory, shard, 8) > 200
