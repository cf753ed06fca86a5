"""Interrupted at any moment, by a signal or a kill, a run goes on from its last checkpoint to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.contract import EXIT_USER_ERROR, Runtime
from stages.train.config import Config
from stages.train.stage import run

Job = Callable[..., Path]


@pytest.fixture
def long(tiny: dict[str, Any]) -> dict[str, Any]:
    """60 steps, everything that has a state on; snapshots and validations on both sides of most interruptions."""
    return {
        **tiny,
        "complement": {"alpha": 0.5},
        "muon": {"momentum_dtype": "bfloat16"},
        "qat": {"mode": "soft", "attention": {"bits": 4}, "below_scale": 0.7},
        "steps": 60,
        "batch_tokens": 512,
        "log_every": 4,
        "validate_every": {"steps": 7, "of": 60},
        "schedule": {"warmdown": {"steps": 50, "of": 60}},
        "snapshots": {"every": {"steps": 5, "of": 60}, "below_scale": 0.8},
    }


def start(job: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "stages.train", str(job)], stderr=subprocess.DEVNULL)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def steps_kept(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors"))


def interrupt(job: Path, how: signal.Signals, ready: Callable[[], bool]) -> int:
    """Start the job, send `how` as soon as it is `ready`, and return its exit code."""
    process = start(job)
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, how)
    return process.wait(timeout=120)


def test_killed_then_terminated_it_ends_with_the_bytes_of_an_uninterrupted_run(long, write_job: Job):
    whole, job = write_job("whole", long), write_job("stopped", long, checkpoint_every_s=0)
    kept, out = job.parent / "checkpoints", job.parent / "out"
    assert start(whole).wait(timeout=120) == 0
    assert interrupt(job, signal.SIGKILL, lambda: max(steps_kept(kept), default=0) >= 9) == -signal.SIGKILL
    assert interrupt(job, signal.SIGTERM, lambda: max(steps_kept(kept), default=0) >= 31) == 128 + signal.SIGTERM
    assert list(out.iterdir()) == []
    assert start(job).wait(timeout=120) == 0
    assert contents(out) == contents(whole.parent / "out")
    report = json.loads((job.parent / "report.json").read_text())
    assert report["resumed_from_step"] >= 31
    assert report["steps"] == 60
    assert report["qat_steps"] == json.loads((whole.parent / "report.json").read_text())["qat_steps"] == 34
    assert len(steps_kept(kept)) == 2


def test_sigterm_leaves_a_checkpoint_within_seconds_and_no_result(long, write_job: Job, tmp_path: Path):
    shown = tmp_path / "progress.jsonl"  # the first periodic checkpoint would come after 30 s
    job = write_job("job", {**long, "steps": 10**6}, progress=str(shown))
    assert interrupt(job, signal.SIGTERM, shown.exists) == 128 + signal.SIGTERM
    assert len(steps_kept(job.parent / "checkpoints")) == 1
    assert list((job.parent / "out").iterdir()) == []
    assert not (job.parent / "report.json").exists()


def test_a_user_error_ends_the_process_with_its_own_exit_code_and_text(tiny, write_job: Job):
    job = write_job("job", {**tiny, "validation_tokens": 10**6})
    assert start(job).wait(timeout=60) == EXIT_USER_ERROR
    error = json.loads((job.parent / "error.json").read_text())
    assert error["kind"] == "user"
    assert "lower train.validation_tokens" in error["message"]


# ---- which checkpoint is taken: runs in this process, which leave one after every step


@pytest.fixture
def go(inputs: dict[str, Path], runtime: Runtime, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Run to the end over whatever the checkpoint folder holds."""

    def train(config: dict[str, Any], seed: int = 7) -> tuple[dict[str, Any], Path]:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        every_step = replace(runtime, checkpoint_every_s=0)
        return run(Config(**config), inputs, out, every_step, seed=seed), out

    return train


def test_a_finished_run_resumes_at_its_end(long, go, runtime):
    expected = contents(go(long)[1])
    assert steps_kept(runtime.checkpoints) == [59, 60]
    report, out = go(long)
    assert report["resumed_from_step"] == 60
    assert contents(out) == expected


def test_a_damaged_checkpoint_gives_way_to_the_one_before(long, go, runtime):
    expected = contents(go(long)[1])
    newest = max(runtime.checkpoints.glob("step-*"))
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    report, out = go(long)
    assert report["resumed_from_step"] == 59
    assert contents(out) == expected


def test_a_half_written_checkpoint_is_never_taken(long, go, runtime):
    expected = contents(go(long)[1])
    newest = max(runtime.checkpoints.glob("step-*"))
    (runtime.checkpoints / "step-000000099.unfinished").write_bytes(newest.read_bytes()[:1000])
    report, out = go(long)
    assert report["resumed_from_step"] == 60
    assert contents(out) == expected
    assert not (runtime.checkpoints / "step-000000099.unfinished").exists()


def test_a_lost_snapshot_is_never_resumed_without(long, go, runtime):
    expected = contents(go(long)[1])
    (runtime.checkpoints / "snapshot-000040.safetensors").unlink()
    report, out = go(long)
    assert report["resumed_from_step"] == 0
    assert contents(out) == expected


@pytest.mark.parametrize("what", ["config", "seed", "data"])
def test_a_checkpoint_of_another_run_is_ignored(what: str, tiny, inputs, go, runtime):
    go(tiny)
    shard = inputs["shards"] / "00001.bin"
    if what == "data":
        shard.write_bytes(shard.read_bytes()[:-2] + b"\x01\x00")
    changed = {**tiny, "clip_norm": 0.5} if what == "config" else tiny
    report, out = go(changed, seed=8 if what == "seed" else 7)
    assert report["resumed_from_step"] == 0
    shutil.rmtree(runtime.checkpoints)
    runtime.checkpoints.mkdir()
    assert contents(go(changed, seed=8 if what == "seed" else 7)[1]) == contents(out)
