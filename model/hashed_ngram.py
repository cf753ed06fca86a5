"""The backoff n-gram mixer of pull request #1033, as published. What it returns is not a probability.

Per order, two tables of counts are indexed by a hash: one by the context, one by the context and the target. Neither
stores what it counts, so every n-gram of a bucket shares its count, and the quotient that serves as "probability" of a
target tends to 1 for every token as the tables fill. Its sum over the vocabulary is 1 while the tables are empty and
grows into the hundreds. Only the realised target is ever looked up: it exists to reproduce a published number, and runs
through the referee's exception for rule C2 alone. The legal counterpart is `model/ngram.py`.

Letters: B windows, T inputs of a window, S scored positions, K = B * S targets, N tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Multipliers of the published hash, by a token's place in its n-gram, oldest first; from the eighth on they repeat.
PRIMES = (36313, 27191, 51647, 81929, 131071, 174763, 233017)
FLOOR = 1e-12  # the least mass of a target, as published


class HashedNGrams:
    """Bucket counts of n-grams of orders 2 .. `max_order`; fp32, as published."""

    def __init__(self, vocab: int, max_order: int, buckets: int, min_count: int, device: torch.device) -> None:
        self.tokens = 0  # counted
        self._vocab, self._buckets, self._min_count, self._device = vocab, buckets, min_count, device
        self._unigrams_V = torch.zeros(vocab, device=device)
        self._orders = range(2, max_order + 1)
        self._contexts = {order: torch.zeros(buckets, device=device) for order in self._orders}
        self._ngrams = {order: torch.zeros(buckets, device=device) for order in self._orders}

    def update(self, tokens_N: Tensor) -> None:
        """Count a chunk's tokens; n-grams across its borders are not counted."""
        tokens_N = tokens_N.to(self._device)
        self.tokens += len(tokens_N)
        self._unigrams_V += torch.bincount(tokens_N, minlength=self._vocab)
        for order in self._orders:
            if len(tokens_N) < order:
                continue
            context, ngram = self._hashes(tokens_N.unfold(0, order, 1))
            ones = torch.ones(len(context), device=self._device)
            self._contexts[order].index_add_(0, context, ones)
            self._ngrams[order].index_add_(0, ngram, ones)

    def mass(self, inputs_BT: Tensor, scored: int, targets_K: Tensor) -> Tensor:
        """What the longest known context says of each target, [K]; the smoothed unigram share where none is known."""
        windows, length = inputs_BT.shape
        targets_BS = targets_K.to(self._device).view(windows, scored)
        inputs_BT = inputs_BT.to(self._device)
        mass_BS = (self._unigrams_V[targets_BS] + 0.5) / (self.tokens + 0.5 * self._vocab)
        for order in self._orders:  # a longer context overrules
            # A position has order - 1 tokens of context in its window, or this order does not speak there.
            first = max(length - scored, order - 2)
            if first >= length:
                break
            there = targets_BS[:, first - (length - scored) :]
            context_BSC = inputs_BT[:, first - (order - 2) :].unfold(1, order - 1, 1)
            context, ngram = self._hashes(torch.cat((context_BSC, there[..., None]), dim=-1))
            seen = self._contexts[order][context]
            share = torch.minimum(self._ngrams[order][ngram], seen) / seen.clamp(min=1)
            own = mass_BS[:, first - (length - scored) :]
            own.copy_(torch.where(seen >= self._min_count, share, own))
        return mass_BS.flatten()

    def _hashes(self, ngrams: Tensor) -> tuple[Tensor, Tensor]:
        """Buckets of the contexts and of the whole n-grams, whose tokens are the last dimension."""
        places = ngrams.shape[-1]
        context = ngrams[..., 0] * PRIMES[0]
        for place in range(1, places - 1):
            context = context ^ (ngrams[..., place] * PRIMES[place % len(PRIMES)])
        whole = context ^ (ngrams[..., -1] * PRIMES[(places - 1) % len(PRIMES)])
        return context % self._buckets, whole % self._buckets
