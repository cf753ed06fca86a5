"""How long is a training step? Tokens per second of quickstart on a CPU, and of the base stack on a GPU.

A step is everything that repeats: loading, forward, backward, clipping, Muon, AdamW and the EMA. For a GPU the first
steps compile, outside of what is timed; published: 81 ms on 8 x H100 for 786,432 tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import load_recipe
from model.batches import Spans, TrainStream, stream_batches
from model.shards import write_shard
from stages.contract import Device, Runtime
from stages.train.checkpoint import Checkpoints
from stages.train.config import Config
from stages.train.loop import Trainer


def trainer_of(config: Config, folder: Path, device: torch.device) -> Trainer:
    draw = np.random.default_rng(0)
    write_shard(folder / "00000.bin", draw.integers(0, config.network.vocab, 4_000_000).astype(np.uint16))
    spans = Spans(
        stream=TrainStream([folder / "00000.bin"], config.network.vocab),
        sequence_tokens=config.sequence_tokens,
        microbatch_tokens=config.microbatch_tokens,
        batch_tokens=config.batch_tokens,
    )
    runtime = Runtime(scratch=folder, checkpoints=folder, device=Device(kind=device.type))
    return Trainer(config, spans, None, runtime, device, Checkpoints(folder, "benchmark"), seed=0)


def measure(benchmark, recipe: str, folder: Path, device: torch.device) -> None:
    config = load_recipe(recipe).recipe.train
    trainer = trainer_of(config, folder, device)
    batches = stream_batches(trainer.spans, device)

    def step() -> None:
        trainer.update(batches, step=0, scale=1.0)
        if trainer.ema:
            trainer.ema.update(0.99)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=10, warmup_rounds=3)
    if benchmark.stats is not None:
        benchmark.extra_info["parameters"] = sum(p.numel() for p in trainer.parameters)
        benchmark.extra_info["tokens_per_s"] = round(config.batch_tokens / benchmark.stats.stats.median)


def test_quickstart_step_on_two_cpu_threads(benchmark, tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure(benchmark, "quickstart", tmp_path, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", ["baseline", "base11"])
def test_full_size_step_on_one_gpu(benchmark, tmp_path: Path, recipe: str):
    measure(benchmark, recipe, tmp_path, torch.device("cuda"))
