from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import BigramConfig, GPTConfig
from model.embeddings import BigramHash, MemoryTokens, SmearGate, bigram_buckets

CONFIG = GPTConfig(dim=8, heads=2, kv_heads=1, bigram=BigramConfig(buckets=2048, dim=4))


def test_the_first_position_has_a_bucket_of_its_own():
    assert bigram_buckets(torch.tensor([[5, 6], [7, 8]]), 2048)[:, 0].tolist() == [2047, 2047]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 65_535), min_size=2, max_size=6), st.sampled_from([2, 31, 2048, 12_288]))
def test_buckets_follow_the_published_hash_without_overflow(ids, buckets):
    got = bigram_buckets(torch.tensor([ids]), buckets)[0].tolist()
    want = [((36313 * now) ^ (27191 * before)) % (buckets - 1) for before, now in pairwise(ids)]
    assert got == [buckets - 1, *want]


def test_a_bucket_depends_on_the_order_of_the_pair():
    there, back = bigram_buckets(torch.tensor([[3, 4]]), 2048), bigram_buckets(torch.tensor([[4, 3]]), 2048)
    assert there[0, 1] != back[0, 1]


def test_bigrams_are_scaled_projections_of_their_rows():
    bigram, tokens = BigramHash(CONFIG), torch.tensor([[9, 8, 7]])
    with torch.no_grad():
        for parameter in bigram.parameters():
            parameter.normal_()
    row = bigram.embed[(36313 * 7 ^ 27191 * 8) % 2047]
    torch.testing.assert_close(bigram(tokens, torch.float32)[0, 2], bigram.scale * (bigram.proj @ row))


@pytest.mark.parametrize("gate", [-30.0, 0.0, 0.7, 30.0])
def test_smear_mixes_each_position_with_the_one_before(gate):
    smear, x = SmearGate(CONFIG), torch.randn(2, 5, 8)
    with torch.no_grad():
        smear.gate.fill_(gate)
    g = torch.sigmoid(torch.tensor(gate))
    got = smear(x)
    torch.testing.assert_close(got[:, 0], (1 - g) * x[:, 0])
    for t in range(1, 5):
        torch.testing.assert_close(got[:, t], (1 - g) * x[:, t] + g * x[:, t - 1])


@pytest.mark.parametrize("tokens", [2, 3, 7])
def test_memory_replaces_the_first_positions_of_every_sequence_and_nothing_else(tokens):
    memory, x = MemoryTokens(replace(CONFIG, memory_tokens=3)), torch.randn(2, tokens, 8)
    with torch.no_grad():
        memory.tokens.normal_()
    got = memory(x)
    assert got.shape == x.shape
    for row in got:
        assert torch.equal(row[:3], memory.tokens[:tokens])
    assert torch.equal(got[:, 3:], x[:, 3:])
