"""How fast does the loader hand out micro-batches? Tokens per second from warm files, against what training eats.

A full-size GPU takes about 1.2 million tokens a second (786,432 in 8 x 81 ms), a CPU about ten thousand.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from model.batches import Spans, TrainStream, prefetch, stream_batches
from model.shards import write_shard

STEPS = 20


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainStream:
    """Four shards of a million tokens: spans cross their borders and wrap."""
    folder = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    for index in range(4):
        write_shard(folder / f"{index:05d}.bin", draw.integers(0, 1024, 1_000_000).astype(np.uint16))
    return TrainStream(sorted(folder.glob("*.bin")), vocab=1024)


@pytest.mark.parametrize(("sequence", "microbatch"), [(2048, 98_304), (256, 2048)], ids=["full", "quickstart"])
@pytest.mark.parametrize("ahead", [False, True], ids=["direct", "prefetched"])
def test_micro_batches(benchmark, stream: TrainStream, sequence: int, microbatch: int, ahead: bool):
    spans = Spans(stream=stream, sequence_tokens=sequence, microbatch_tokens=microbatch, batch_tokens=microbatch)

    def read() -> int:
        batches = stream_batches(spans, torch.device("cpu"))
        source = prefetch(batches, depth=8) if ahead else batches
        return sum(inputs_BT.numel() for inputs_BT, _ in islice(source, STEPS))

    assert benchmark(read) == STEPS * microbatch
    if benchmark.stats is not None:
        benchmark.extra_info["tokens_per_s"] = round(STEPS * microbatch / benchmark.stats.stats.median)
