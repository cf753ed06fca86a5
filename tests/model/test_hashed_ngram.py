from __future__ import annotations

import json
import runpy
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.hashed_ngram import HashedNGrams

ROOT = Path(__file__).resolve().parents[2]
PARITY = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "parity_mixer.py")))
FROZEN = json.loads(PARITY.FROZEN.read_text())
CPU = torch.device("cpu")
MULTIPLIERS = (36313, 27191, 51647, 81929, 131071, 174763, 233017)


def sums(load, vocab=1024, buckets=2048, max_order=10):
    """Sum over the vocabulary of what is called a probability, at 16 positions of a stream without any structure."""
    rng = np.random.default_rng(0)
    mixer = HashedNGrams(vocab, max_order, buckets, 2, CPU)
    mixer.update(torch.from_numpy(rng.integers(0, vocab, int(load * buckets))))
    inputs = torch.from_numpy(rng.integers(0, vocab, (16, 12)))
    masses = [mixer.mass(inputs, 1, torch.full((16,), token)) for token in range(vocab)]
    return torch.stack(masses).sum(0)


def test_at_the_published_load_the_mass_of_the_vocabulary_is_in_the_hundreds():
    """62,021,632 tokens in 4,194,304 buckets are 14.8 a bucket; the text is noise, so an honest sum would be 1."""
    assert sums(14.8).min() > 500


def test_nearly_empty_tables_fall_back_to_unigrams_which_sum_to_one():
    np.testing.assert_allclose(sums(0.001), 1, atol=1e-5)


def naive_mass(tokens, context, target, vocab, buckets, max_order, min_count):
    """The rule, one target at a time, over dictionaries of buckets."""
    for order in range(max_order, 1, -1):
        if len(context) < order - 1:
            continue

        def hashed(ngram):
            value = 0
            for place, token in enumerate(ngram):
                value ^= token * MULTIPLIERS[place % 7]
            return value % buckets

        grams = [tokens[i : i + order] for i in range(len(tokens) - order + 1)]
        seen = sum(hashed(gram[:-1]) == hashed(context[-(order - 1) :]) for gram in grams)
        both = sum(hashed(gram) == hashed([*context[-(order - 1) :], target]) for gram in grams)
        if seen >= min_count:
            return min(both, seen) / max(seen, 1)
    return (tokens.count(target) + 0.5) / (len(tokens) + 0.5 * vocab)


@pytest.mark.parametrize("scored", [10, 4, 1])
def test_a_naive_count_of_buckets_agrees(scored):
    rng = np.random.default_rng(1)
    vocab, buckets, max_order = 24, 512, 9
    tokens = rng.integers(0, vocab, 150).tolist()
    mixer = HashedNGrams(vocab, max_order, buckets, 2, CPU)
    mixer.update(torch.tensor(tokens))
    inputs = [tokens[40:50], rng.integers(0, vocab, 10).tolist(), tokens[-10:]]
    targets = rng.integers(0, vocab, (3, scored))
    mass = mixer.mass(torch.tensor(inputs), scored, torch.from_numpy(targets.flatten())).view(3, scored)
    for row in range(3):
        for i in range(scored):
            context = inputs[row][: 10 - scored + i + 1]
            expected = naive_mass(tokens, context, int(targets[row, i]), vocab, buckets, max_order, 2)
            assert mass[row, i] == pytest.approx(expected, abs=1e-6)


def test_ngrams_across_chunk_borders_are_not_counted():
    apart, together = (HashedNGrams(8, 2, 64, 1, CPU) for _ in range(2))
    for token in (1, 2):
        apart.update(torch.tensor([token]))
    together.update(torch.tensor([1, 2]))
    inputs, target = torch.tensor([[1]]), torch.tensor([2])
    assert together.mass(inputs, 1, target) == 1.0
    assert apart.mass(inputs, 1, target) == pytest.approx(1.5 / 6)


def test_prices_and_mean_are_those_that_the_published_loop_computed():
    case = PARITY.CASES["small"]
    assert asdict(case) == FROZEN["case"]
    prices, referee = PARITY.ours(case)
    np.testing.assert_allclose(prices[::7], FROZEN["prices"], rtol=0, atol=1e-5)
    account = referee.ledger.account + referee.ledger.again  # its loop scores the tail again
    assert account.nats / account.targets == pytest.approx(FROZEN["mean"], rel=1e-7)


@pytest.mark.parametrize("change", [{"buckets": 1024}, {"max_order": 9}, {"active_after": 10_000}, {"chunk": 128}])
def test_each_setting_of_the_published_mixer_shows_in_its_prices(change):
    """Else the test above could hold for a mixer that does less."""
    prices, _ = PARITY.ours(replace(PARITY.CASES["small"], **change))
    assert np.abs(prices[::7] - FROZEN["prices"]).max() > 0.01
