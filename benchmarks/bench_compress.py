"""How small is the archive beside the published formats, and how long do writing and reading take?

Identical tensors go into `torch.save` + zstd-22, `torch.save` + lzma-6 and our archive. `extra_info` has the bytes and
our saving in per cent. "gaussian" leaves nothing for a context to learn: the floor of what the coder alone saves.
Real weights: set FAIRWAY_BENCH_WEIGHTS to a weights.safetensors.
"""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import pytest
import torch
import zstandard
from trained import coded_network, published_blob, trained_network

from model.archive import read_archive, read_quantized, write_archive
from model.config import GPTConfig
from model.quantized import Coded, equal
from model.weights import load_weights
from stages.quantize.config import Config
from stages.quantize.network import quantize_network

pytestmark = pytest.mark.usefixtures("two_threads")

SIZES = {
    "2M gaussian": {"layers": 3, "dim": 256, "spread": 0.0},
    "2M trained-like": {"layers": 3, "dim": 256},
    "27M trained-like": {"layers": 11, "dim": 512, "buckets": 2048},
}
CASES = [pytest.param(SIZES[name], id=name, marks=[pytest.mark.slow] * name.startswith("27M")) for name in SIZES]


def compare(benchmark, quantized, path: Path) -> None:
    """Time the archive, check it, and note every size."""
    sections = benchmark.pedantic(write_archive, (path, quantized, GPTConfig()), rounds=1)
    assert equal(read_quantized(path)[0], quantized)
    blob = published_blob(quantized)
    archive = path.stat().st_size
    zstd = len(zstandard.ZstdCompressor(level=22).compress(blob))
    lzma6 = len(lzma.compress(blob, preset=6))
    weights = sum(t.codes.numel() if isinstance(t, Coded) else t.numel() for t in quantized.values())
    benchmark.extra_info.update(
        {
            "weights": weights,
            "archive_bytes": archive,
            "bits_per_weight": round(8 * archive / weights, 4),
            "zstd_22_bytes": zstd,
            "lzma_6_bytes": lzma6,
            "smaller_than_zstd_22": f"{100 * (1 - archive / zstd):.2f} %",
            "smaller_than_lzma_6": f"{100 * (1 - archive / lzma6):.2f} %",
            "sections": {s.label: f"{s.bytes} {'>'.join(s.chain.names)}" for s in sections},
        }
    )
    print(json.dumps(benchmark.extra_info, indent=1))
    assert archive < min(zstd, lzma6)


@pytest.mark.parametrize("size", CASES)
def test_writing_an_archive_beside_the_published_formats(benchmark, tmp_path, size):
    compare(benchmark, coded_network(trained_network(**size)), tmp_path / "archive.fwy")


@pytest.mark.parametrize("size", CASES)
def test_reading_an_archive_into_fp32(benchmark, tmp_path, size):
    path = tmp_path / "archive.fwy"
    quantized = coded_network(trained_network(**size))
    write_archive(path, quantized, GPTConfig())
    tensors, _, _ = benchmark.pedantic(read_archive, (path,), rounds=1)
    assert tensors.keys() == quantized.keys()


def test_real_weights_beside_the_published_formats(benchmark, tmp_path):
    weights = os.environ.get("FAIRWAY_BENCH_WEIGHTS")
    if not weights:
        pytest.skip("FAIRWAY_BENCH_WEIGHTS names no weights file")
    tensors, _ = load_weights(Path(weights))
    forms = quantize_network(tensors, Config(small_weights=4096), torch.device("cpu"))
    compare(benchmark, {name: form for name, form, _ in forms}, tmp_path / "archive.fwy")
