"""A training of a second: a tiny network on text with structure to learn, every feature on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.bytes import ByteTable
from model.shards import write_shard
from stages.contract import Device, Runtime

VOCAB = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads would only wait for each other on matrices of 16 rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    """One thread, as above."""
    return replace(runtime, device=Device(threads=1))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget compiled graphs: torch keeps a few per function, and a process of the pipeline trains once."""
    import torch

    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Two shards of a noisy cycle over 64 ids, and a byte table in which every id is two bytes."""
    draw = np.random.default_rng(0)
    ids = (np.arange(6000) * 3 + (draw.random(6000) < 0.2) * draw.integers(0, VOCAB, 6000)) % VOCAB
    folders = {role: tmp_path / "inputs" / role for role in ("shards", "tokenizer")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    write_shard(folders["shards"] / "00000.bin", ids[:2500].astype(np.uint16))
    write_shard(folders["shards"] / "00001.bin", ids[2500:].astype(np.uint16))
    flags = np.zeros(VOCAB, dtype=bool)
    ByteTable(np.full(VOCAB, 2, dtype=np.int32), flags, flags).save(folders["tokenizer"] / "bytes.npy")
    return folders


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Configuration of 12 steps: two micro-steps each, validation, EMA, snapshots every third step of the warmdown."""
    return {
        "network": {
            "vocab": VOCAB,
            "layers": 3,
            "dim": 16,
            "heads": 2,
            "kv_heads": 1,
            "mlp_hidden": 32,
            "rope": {"dims": 4},
            "bigram": {"buckets": 32, "dim": 8},
            "smear": True,
            "unet_skips": True,
            "residual_mix": True,
            "ln_scale": True,
        },
        "steps": 12,
        "sequence_tokens": 16,
        "microbatch_tokens": 64,
        "batch_tokens": 128,
        "validation_tokens": 700,
        "validate_every": {"steps": 5, "of": 12},
        "schedule": {"warmdown": {"steps": 8, "of": 12}},
        "ema": {"time_constant": {"steps": 4, "of": 12}},
        "snapshots": {"every": {"steps": 3, "of": 12}, "below_scale": 0.6},
    }


@pytest.fixture
def write_job(tmp_path: Path, inputs: dict[str, Path]) -> Callable[..., Path]:
    """Write the JOB.json of a real process: `write_job("name", config, count=1, **runtime)`."""

    def write(name: str, config: dict[str, Any], count: int = 1, **runtime: Any) -> Path:
        root = tmp_path / name
        for folder in ("out", "scratch", "checkpoints"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        device = asdict(Device(count=count, threads=1))
        places = {place: str(root / place) for place in ("scratch", "checkpoints")}
        job = {
            "config": config,
            "inputs": {role: str(folder) for role, folder in inputs.items()},
            "out": str(root / "out"),
            "seed": 7,
            "runtime": {**places, "device": device, **runtime},
        }
        (root / "JOB.json").write_text(json.dumps(job))
        return root / "JOB.json"

    return write
