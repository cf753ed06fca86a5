"""What the residual stream starts from: token table, hashed bigrams, memory, the gate that looks one position back.

Letters: B sequences, T positions, D width, V vocabulary, E bigram width, M memory tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import GPTConfig

# Multipliers of the current and the previous token in the bigram hash of the published runs.
HASH_CURRENT, HASH_PREVIOUS = 36_313, 27_191


class TokenEmbedding(nn.Module):
    """One row per token; also the output matrix when the head is tied."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(config.vocab, config.dim))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Look the rows up."""
        return functional.embedding(tokens_BT, self.tokens)


def bigram_buckets(tokens_BT: Tensor, buckets: int) -> Tensor:
    """The table row of (previous token, token) at each position; the last row is kept for a sequence's first position.

    Integers of 64 bits: a vocabulary of 65,536 overflows 32.
    """
    current_BT, previous_BT = tokens_BT[:, 1:], tokens_BT[:, :-1]
    hashed_BT = torch.bitwise_xor(HASH_CURRENT * current_BT, HASH_PREVIOUS * previous_BT) % (buckets - 1)
    return functional.pad(hashed_BT, (1, 0), value=buckets - 1)


class BigramHash(nn.Module):
    """A hashed table of (previous token, token), projected to the width and scaled by one learned number."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.buckets = config.bigram.buckets
        self.embed = nn.Parameter(torch.zeros(config.bigram.buckets, config.bigram.dim))
        self.proj = nn.Parameter(torch.zeros(config.dim, config.bigram.dim))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Return scale * proj(embed[bucket]) as [B, T, D] of `dtype`."""
        rows_BTE = functional.embedding(bigram_buckets(tokens_BT, self.buckets), self.embed)
        return functional.linear(rows_BTE.to(dtype), (self.scale * self.proj).to(dtype))


class SmearGate(nn.Module):
    """Mix each position with the one before it, per channel; the position before the first is zero."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(config.dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return (1 - g) * x_t + g * x_{t-1} with g = sigmoid(gate)."""
        previous_BTD = functional.pad(x_BTD, (0, 0, 1, -1))
        return torch.lerp(x_BTD, previous_BTD, torch.sigmoid(self.gate).to(x_BTD.dtype))


class MemoryTokens(nn.Module):
    """Learned vectors in place of the first positions of every sequence, whose tokens the network then cannot see.

    What is trained learns nothing from the targets of these positions, as published (PR #398, where it brought
    nothing). Scoring counts them like all others; the published validation left them out.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(config.memory_tokens, config.dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return x with its first positions replaced (all of them, if there are fewer)."""
        batch, tokens, _ = x_BTD.shape
        memory_BMD = self.tokens[:tokens].to(x_BTD.dtype).expand(batch, -1, -1)
        return torch.cat((memory_BMD, x_BTD[:, len(self.tokens) :]), dim=1)
