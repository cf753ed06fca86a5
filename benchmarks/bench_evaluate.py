"""How fast is a score? Inputs per second of each protocol; what the referee costs beside the network.

A CPU runs eagerly in fp32 on two threads at quickstart's size, as `quickstart` scores; a GPU runs compiled in bf16 at
full size. Round trips see each token once, sliding windows context / stride times; adaptation adds training.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.adapt import Adapter
from model.attention import choose_attention
from model.bytes import ByteTable
from model.config import BigramConfig, GPTConfig, RopeConfig
from model.descent import Compute
from model.gpt import GPT
from model.init import initialise
from model.ledger import Ledger
from model.protocol import Adaptation
from model.referee import Referee
from model.score import Scorer, autocast, score
from model.stream import TokenStream
from model.windows import Windows

pytestmark = pytest.mark.usefixtures("two_threads")

FEATURES = {"smear": True, "unet_skips": True, "residual_mix": True, "ln_scale": True}
SMALL = GPTConfig(
    layers=6, dim=192, heads=6, kv_heads=3, mlp_hidden=576, rope=RopeConfig(dims=16),
    bigram=BigramConfig(buckets=2048, dim=64), **FEATURES,
)  # fmt: skip
BASE_STACK = GPTConfig(rope=RopeConfig(dims=16), bigram=BigramConfig(buckets=2048), **FEATURES)
TABLE = ByteTable(np.full(1024, 2, np.int32), np.zeros(1024, bool), np.zeros(1024, bool))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_referee(targets, context, stride, chunk=0, batch_windows=16):
    tokens = np.random.default_rng(0).integers(0, 1024, targets + 1).astype(np.uint16)
    windows = Windows(targets, context, stride)
    ledger = Ledger(TABLE, context, targets)
    stream = TokenStream([tokens])
    return Referee(stream, windows, ledger, vocab=1024, batch_windows=batch_windows, chunk=chunk)


@pytest.mark.parametrize(
    ("stride", "epochs"), [(256, 0), (128, 0), (64, 0), (64, 1), (64, 3)], ids=lambda value: str(value)
)
def test_scoring_16384_targets_in_windows_of_256_on_a_cpu(benchmark, stride, epochs):
    device, model = torch.device("cpu"), GPT(SMALL)
    initialise(model, 0)
    scorer = Scorer(model, device, torch.float32)

    def run():
        referee = make_referee(16_384, 256, stride, chunk=4096 if epochs else 0)
        adapter = Adapter(model, Adaptation(epochs=epochs, batch_sequences=16), 256) if epochs else None
        score(referee, scorer, adapter)
        return referee

    referee = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    assert referee.finished
    benchmark.extra_info["inputs"] = referee.forward_tokens


def test_the_referee_alone_on_16384_targets(benchmark):
    """The same logits for every batch: only inputs, normalisation, checks and the ledger are timed."""
    logits = torch.randn(16, 64, 1024)
    first = torch.randn(1, 256, 1024)

    def run():
        referee = make_referee(16_384, 256, 64)
        score(referee, lambda inputs, scored: first if scored == 256 else logits[: len(inputs)])
        return referee

    assert benchmark(run).finished


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("stride", "batch_windows"), [(2048, 32), (64, 32), (64, 128)])
def test_scoring_in_windows_of_2048_on_a_gpu(benchmark, stride, batch_windows):
    device, dtype = torch.device("cuda"), torch.bfloat16
    model = GPT(BASE_STACK, choose_attention(BASE_STACK, device, dtype).attend).to(device)
    initialise(model, 0)
    call = torch.compile(model, fullgraph=True, dynamic=False)
    scorer = Scorer(call, device, dtype, (batch_windows, 2048), True)
    targets = 1 << 21 if stride == 2048 else 1 << 17

    def run():
        referee = make_referee(targets, 2048, stride, batch_windows=batch_windows)
        score(referee, scorer)
        return referee

    referee = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    benchmark.extra_info["inputs"] = referee.forward_tokens


@needs_gpu
@pytest.mark.gpu
def test_adapting_on_a_chunk_of_32768_targets_on_a_gpu(benchmark):
    device, dtype = torch.device("cuda"), torch.bfloat16
    model = GPT(BASE_STACK, choose_attention(BASE_STACK, device, dtype).attend).to(device)
    initialise(model, 0)
    call = torch.compile(model, fullgraph=True, dynamic=False)
    compute = Compute(forward=call, autocast=lambda: autocast(device, dtype))
    adapter = Adapter(model, Adaptation(), 2048, compute)
    tokens = torch.randint(1024, (32_769,))

    def run():
        adapter.update(tokens, 0)
        torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=2)
