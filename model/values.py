"""What a layer's attention values hold besides the projection of its own input: token values, and layer 0's value.

    v = own_l W_v z + first_l v_0 + embedding_l VE(token)

own_l differs from 1 in the mixing form of the value residual only, and is multiplied into W_v (`model/block.py`).
Layer 0 has no first_l; v_0 is its plain projection.

Letters: L layers, B sequences, T positions, V vocabulary, E table width, G key/value heads, K head width, J = GK.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import GPTConfig


class ValueEmbedding(nn.Module):
    """One token table for several layers, projected to the width of all value heads and scaled by one number."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.kv_heads
        self.embed = nn.Parameter(torch.zeros(config.vocab, config.value_embedding.dim))
        self.proj = nn.Parameter(torch.zeros(config.kv_dim, config.value_embedding.dim))
        self.scale = nn.Parameter(torch.zeros(()))
        self.layer_scales = nn.Parameter(torch.zeros(len(config.value_embedding.layers)))

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Return scale * proj(embed[token]) as [B, T, G, K] of `dtype`; each layer multiplies its own scale."""
        rows_BTE = functional.embedding(tokens_BT, self.embed).to(dtype)
        values_BTJ = functional.linear(rows_BTE, (self.scale * self.proj).to(dtype))
        return values_BTJ.unflatten(-1, (self.heads, -1))


class ValueResidual(nn.Module):
    """How much of layer 0's value each later layer adds: the additive form."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.zeros(config.layers - 1))


class ValueGains(NamedTuple):
    """What one layer adds to its own values, as scalars; None where it adds nothing."""

    first: Tensor | None
    embedding: Tensor | None


class ExtraValues(NamedTuple):
    """What there is to add, [B, T, G, K] each."""

    first: Tensor | None
    embedding: Tensor | None


def value_gains(
    embedding: ValueEmbedding | None,
    residual: ValueResidual | None,
    mix_L2: Tensor | None,
    config: GPTConfig,
    dtype: torch.dtype,
) -> list[ValueGains]:
    """One entry per layer."""
    first: list[Tensor | None] = [None] * config.layers
    if residual is not None:
        first[1:] = residual.scales.to(dtype).unbind()
    elif mix_L2 is not None:
        first[1:] = mix_L2[1:, 0].to(dtype).unbind()
    embedded: list[Tensor | None] = [None] * config.layers
    if embedding is not None:
        for layer, scale in zip(config.value_embedding.layers, embedding.layer_scales.to(dtype).unbind(), strict=True):
            embedded[layer] = scale
    return [ValueGains(*gains) for gains in zip(first, embedded, strict=True)]


def add_values(v_BTGK: Tensor, extra: ExtraValues, gains: ValueGains) -> Tensor:
    """The values that attention uses."""
    for more_BTGK, gain in zip(extra, gains, strict=True):
        if more_BTGK is not None and gain is not None:
            v_BTGK = torch.addcmul(v_BTGK, more_BTGK, gain)
    return v_BTGK
