"""What does a mixer cost? Tokens counted and targets predicted per second, and memory, on a CPU with two threads.

The stream is of Zipf tokens over a vocabulary of 1,024, in which earlier passages come back: text has more repeats of
short n-grams, this more distinct ones, so it is the expensive case. `extra_info` holds n-grams and bytes per token.

Measured once on English text (12 million tokens of the challenge's 1,024-token vocabulary), order 5, CPU time of one
thread: 0.6 to 1.1 us to count a token, 9 to 13 us to blend a target, 41 bytes per token at 1 million tokens and 26 at
12 million. By that trend the 62,021,632 tokens of validation need some 1.3 GB and 90 s of counting on every rank, and
130 s to blend an eighth of the targets.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from model.hashed_ngram import HashedNGrams
from model.mixer import Blend, Gate
from model.ngram import NGrams
from model.referee import Handout

pytestmark = pytest.mark.usefixtures("two_threads")

CPU = torch.device("cpu")
VOCAB, CHUNK = 1024, 32_768
MIXERS = {
    "bigram-ppm": lambda: NGrams(VOCAB, 2, CPU, discount=0.0, escape=1.0),
    "order-3": lambda: NGrams(VOCAB, 3, CPU),
    "order-5": lambda: NGrams(VOCAB, 5, CPU),
    "order-10": lambda: NGrams(VOCAB, 10, CPU),
}


@cache
def stream(tokens: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, VOCAB + 1)
    ids = rng.choice(VOCAB, tokens, p=weights / weights.sum())
    for _ in range(tokens // 100):
        length = int(rng.integers(4, 60))
        begin, to = rng.integers(0, tokens - length, 2)
        ids[to : to + length] = ids[begin : begin + length]
    return torch.from_numpy(ids)


def counted(make, tokens):
    ngrams = make()
    for chunk in stream(tokens).split(CHUNK):
        ngrams.update(chunk)
    return ngrams


@pytest.mark.parametrize("tokens", [1 << 15, 1 << 18, pytest.param(1 << 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mixer", MIXERS)
def test_counting_a_stream_in_chunks(benchmark, mixer, tokens):
    stream(tokens)
    ngrams = benchmark.pedantic(counted, (MIXERS[mixer], tokens), rounds=1)
    assert ngrams.tokens == tokens
    benchmark.extra_info["ngrams_per_token"] = ngrams.entries / tokens
    benchmark.extra_info["bytes_per_token"] = ngrams.memory_bytes / tokens


@pytest.mark.parametrize("tokens", [1 << 18, pytest.param(1 << 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mixer", MIXERS)
def test_blending_2048_targets(benchmark, mixer, tokens):
    """32 windows of 256 inputs at stride 64: contexts, distribution, check of its sum, blend."""
    ngrams = counted(MIXERS[mixer], tokens)
    blend = Blend(ngrams, Gate())
    handout = Handout(stream(tokens).unfold(0, 256, 64)[-32:], 64, 0, 2048)
    logits_KV = torch.randn(2048, VOCAB)
    logp_KV = benchmark.pedantic(blend.blend, (handout, logits_KV), rounds=5, warmup_rounds=1)
    assert (logp_KV.exp().sum(-1) - 1).abs().max() < 1e-4


def test_the_softmax_that_every_score_needs_for_2048_targets(benchmark):
    """What the blend is to be compared with."""
    logits_KV = torch.randn(2048, VOCAB)
    benchmark(torch.log_softmax, logits_KV, dim=-1)


def test_the_published_mixer_counts_a_chunk(benchmark):
    hashed = HashedNGrams(VOCAB, 10, 4_194_304, 2, CPU)
    benchmark.pedantic(hashed.update, (stream(CHUNK),), rounds=5, warmup_rounds=1)
