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
import torch

from model.weights import load_weights
from stages.contract import Runtime
from stages.train.checkpoint import Checkpoints
from stages.train.config import Config
from stages.train.data import open_data
from stages.train.loop import Trainer
from stages.train.muon import Muon

MATRICES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "bigram.proj")
CPU = torch.device("cpu")
Job = Callable[..., Path]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def curve(job: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (job.parent / "out/curve/curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_two_gloo_ranks_equal_one_process_within_fp32_noise(parallel: str, tiny, write_job: Job):
    config = {**tiny, "muon": {"parallel": parallel}, "qat": {"mode": "ste", "mlp": {"bits": 6}, "below_scale": 0.5}}
    one, two = write_job("one", config), write_job("two", config, count=2, checkpoint_every_s=0)
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


def gradients_of_rank(config: Config, inputs: dict[str, Path], runtime: Runtime, rank: int) -> tuple[Trainer, list]:
    """A trainer at its start as one of two ranks, and the gradients of its first step."""
    spans, _ = open_data(config, inputs, rank, 2)
    trainer = Trainer(config, spans, None, runtime, CPU, Checkpoints(runtime.checkpoints, "none"), seed=7)
    for micro_step in range(spans.accumulation):
        trainer._backward(*spans.load(0, micro_step), on_grid=None)
    return trainer, [p.grad.clone() for p in trainer.parameters if p.grad is not None]


@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_clipping_before_the_reduction_is_the_mean_of_gradients_that_each_rank_clipped(
    parallel: str, tiny, inputs, runtime, write_job: Job
):
    limit = 0.05
    config = {**tiny, "steps": 1, "clip": "before", "clip_norm": limit, "validation_tokens": 0}
    config |= {"muon": {"parallel": parallel, "lr": 1e-3}, "batch_tokens": 256}
    job = write_job("job", config, count=2)
    subprocess.run([*TORCHRUN, "-m", "stages.train", str(job)], check=True, timeout=120, capture_output=True)
    ends, _ = load_weights(job.parent / "out/raw/weights.safetensors")

    trainer, first = gradients_of_rank(Config(**config), inputs, runtime, 0)
    _, second = gradients_of_rank(Config(**config), inputs, runtime, 1)
    norms = [torch.stack([g.norm() for g in each]).norm() for each in (first, second)]
    assert min(norms) > 2 * limit
    assert abs(norms[0] - norms[1]) > 0.01 * norms[0]  # else the order would not matter
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for parameter, a, b in zip(trainer.parameters, first, second, strict=True):
        parameter.grad = (a * limit / (norms[0] + 1e-6) + b * limit / (norms[1] + 1e-6)) / 2
    trainer.optimizers.set(1.0, 0.92)
    trainer.optimizers._world = 1
    trainer.optimizers._muon = Muon(
        [trainer.model.get_parameter(name) for name in MATRICES],
        lr=1e-3,
        momentum=0.92,
        weight_decay=0.04,
        dtype=torch.float32,
    )
    for optimizer in (trainer.optimizers._adam, trainer.optimizers._muon):
        optimizer.step()
    for name, parameter in trainer.model.named_parameters():
        moved, wanted = ends[name] - start[name], parameter.detach() - start[name]
        assert (moved - wanted).norm() <= 1e-3 * wanted.norm() + 1e-9, name
    (line,) = [line for line in curve(job) if line["step"] == 1]
    assert line["gradient_norm"] == pytest.approx(float(sum(norms)) / 2, rel=0.02)


def test_rate_and_stop_are_rank_0s_whatever_this_ranks_clock_says(tiny, inputs, runtime, monkeypatch):
    """That rank 0's numbers arrive on every rank is asserted by the ranks of `test_sharded.py`."""
    config = Config.model_validate({**tiny, "budget_s": 1e-9, "schedule": {"clock": "wall"}})
    trainer, _ = gradients_of_rank(config, inputs, runtime, 1)
    asked = []

    def rank_0_says(mine: list[float], world: int) -> list[float]:
        asked.append((mine, world))
        return [0.25, 0.5, 0.0, 0.0, 0.0]

    monkeypatch.setattr("stages.train.loop.from_first_rank", rank_0_says)
    monkeypatch.setattr(trainer.clock, "elapsed_s", lambda: 1e9)  # by its own clock the run is over
    decision = trainer._decide()
    assert (decision.scale, decision.share, decision.stop) == (0.25, 0.5, False)
    ((mine, world),) = asked
    assert (mine[0], mine[2], world) == (0.0, True, 2)


@pytest.mark.slow
def test_interrupted_ranks_go_on_with_their_own_counts_and_shares(tiny, write_job: Job):
    config = {**tiny, "steps": 60, "complement": {"alpha": 0.5}, "muon": {"parallel": "sharded"}}
    whole, job = write_job("whole", config, count=2), write_job("job", config, count=2, checkpoint_every_s=0)
    subprocess.run([*TORCHRUN, "-m", "stages.train", str(whole)], check=True, timeout=120, capture_output=True)
    process = subprocess.Popen([*TORCHRUN, "-m", "stages.train", str(job)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((job.parent / "checkpoints").glob("step-*.safetensors"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) != 0
    subprocess.run([*TORCHRUN, "-m", "stages.train", str(job)], check=True, timeout=120, capture_output=True)
    assert json.loads((job.parent / "report.json").read_text())["resumed_from_step"] > 0
    for role in ("raw", "ema"):
        ends = [load_weights(each.parent / f"out/{role}/weights.safetensors")[0] for each in (whole, job)]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_ranks_stop_together_at_a_signal_and_leave_a_checkpoint(tiny, write_job: Job, tmp_path: Path):
    shown = tmp_path / "progress.jsonl"
    job = write_job("job", {**tiny, "steps": 10**6}, count=2, progress=str(shown))
    process = subprocess.Popen([*TORCHRUN, "-m", "stages.train", str(job)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not shown.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) != 0
    assert len(list((job.parent / "checkpoints").glob("step-*.safetensors"))) == 1
