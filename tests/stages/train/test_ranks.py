"""Two ranks are one process: the same spans, the same update, under a real torchrun."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.weights import load_weights

Job = Callable[..., Path]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def curve(job: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (job.parent / "out/curve/curve.jsonl").read_text().splitlines()]


def test_two_gloo_ranks_equal_one_process_within_fp32_noise(tiny, write_job: Job):
    one, two = write_job("one", tiny), write_job("two", tiny, count=2)
    subprocess.run([sys.executable, "-m", "stages.train", str(one)], check=True, timeout=120)
    subprocess.run([*TORCHRUN, "-m", "stages.train", str(two)], check=True, timeout=120, capture_output=True)
    for alone, shared in zip(curve(one), curve(two), strict=True):
        assert shared == pytest.approx(alone, abs=1e-5)
    names = sorted(p.relative_to(one.parent) for p in (one.parent / "out").rglob("*.safetensors"))
    assert len(names) == 4
    for name in names:
        (alone, _), (shared, _) = load_weights(one.parent / name), load_weights(two.parent / name)
        for key in alone:
            # The ranks' gradients are summed in another order; Muon then brings small differences to full size
            # only where a gradient is itself noise, so weights agree to a small part of one step (0.025).
            assert (alone[key] - shared[key]).abs().max() < 5e-4, key


def test_ranks_stop_together_at_a_signal_and_leave_a_checkpoint(tiny, write_job: Job, tmp_path: Path):
    shown = tmp_path / "progress.jsonl"
    job = write_job("job", {**tiny, "steps": 10**6}, count=2, progress=str(shown))
    process = subprocess.Popen([*TORCHRUN, "-m", "stages.train", str(job)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not shown.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) != 0
    assert len(list((job.parent / "checkpoints").glob("step-*.safetensors"))) == 1
