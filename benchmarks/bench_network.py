"""How long is one forward and backward pass, and one Muon step? Tokens per second follow from the numbers in the names.

A CPU runs eagerly in fp32 on two threads, as `quickstart` trains; a GPU compiles and runs in bf16, as the recipes at
full size do.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from model.attention import choose_attention
from model.config import BigramConfig, GPTConfig, RopeConfig
from model.gpt import GPT
from model.init import initialise
from stages.train.groups import parameter_groups
from stages.train.muon import Muon

pytestmark = pytest.mark.usefixtures("two_threads")

FEATURES = {"smear": True, "unet_skips": True, "residual_mix": True, "ln_scale": True}
SMALL = GPTConfig(
    layers=6,
    dim=192,
    heads=6,
    kv_heads=3,
    mlp_hidden=576,
    rope=RopeConfig(dims=16, reference_tokens=1024),
    bigram=BigramConfig(buckets=2048, dim=64),
    **FEATURES,
)
BASE_STACK = GPTConfig(rope=RopeConfig(dims=16, reference_tokens=1024), bigram=BigramConfig(buckets=2048), **FEATURES)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network(config: GPTConfig, device: str, dtype: torch.dtype) -> GPT:
    model = GPT(config, choose_attention(config, torch.device(device), dtype).attend).to(device)
    initialise(model, 0)
    return model


def tokens(config: GPTConfig, sequences: int, length: int, device: str) -> torch.Tensor:
    return torch.randint(config.vocab, (sequences, length + 1), device=device)


def test_forward_of_4096_tokens_on_a_cpu(benchmark):
    model, ids = network(SMALL, "cpu", torch.float32), tokens(SMALL, 16, 256, "cpu")
    with torch.no_grad():
        logits = benchmark(model, ids[:, :-1])
    assert logits.shape == (16, 256, SMALL.vocab)


def test_forward_and_backward_of_4096_tokens_on_a_cpu(benchmark):
    model, ids = network(SMALL, "cpu", torch.float32), tokens(SMALL, 16, 256, "cpu")

    def step() -> None:
        functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        model.zero_grad()

    benchmark(step)


def test_muon_step_of_the_small_network_on_a_cpu(benchmark):
    model = network(SMALL, "cpu", torch.float32)
    matrices = [p for _, p in parameter_groups(model)["matrix"]]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    benchmark(Muon(matrices, lr=1e-3, dtype=torch.float32).step)


@pytest.mark.gpu
@needs_gpu
def test_forward_and_backward_of_98304_tokens_of_the_base_stack_on_a_gpu(benchmark):
    model, ids = network(BASE_STACK, "cuda", torch.bfloat16), tokens(BASE_STACK, 48, 2048, "cuda")

    @torch.compile(fullgraph=True, dynamic=False)
    def loss() -> torch.Tensor:
        return functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss()
        value.backward()
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    benchmark.pedantic(step, warmup_rounds=5, rounds=20)


@pytest.mark.gpu
@needs_gpu
def test_muon_step_of_the_base_stack_on_a_gpu(benchmark):
    matrices = [p for _, p in parameter_groups(network(BASE_STACK, "cuda", torch.bfloat16))["matrix"]]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizer = Muon(matrices, lr=1e-3)

    def step() -> None:
        optimizer.step()
        torch.cuda.synchronize()

    benchmark.pedantic(step, warmup_rounds=3, rounds=20)
