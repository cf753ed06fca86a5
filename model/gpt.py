"""The network, on one screen: stem, blocks with U-Net skips, refiner, head. Its layers live next door.

Unusual here: parameters are fp32 banks over layers; `torch.autocast` around the call only chooses the compute dtype,
and every cast is written out; there is no cache and no branch on data, so one static graph serves
`torch.compile(fullgraph=True)`.

Letters: B sequences, T positions, D width, V vocabulary, G key/value heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import Attend, torch_attention
from model.block import (
    AttentionBanks,
    BlockScales,
    LayerWeights,
    MLPBanks,
    layer_weights,
    rms_norm,
    transformer_block,
)
from model.config import GPTConfig
from model.embeddings import BigramHash, MemoryTokens, SmearGate, TokenEmbedding
from model.refiner import Refiner
from model.rotary import rotary_tables
from model.values import ExtraValues, ValueEmbedding, ValueResidual, value_gains


class Head(nn.Module):
    """An output matrix of its own."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.vocab, config.dim))


class Skips(nn.Module):
    """Per-channel weights of the U-Net skips."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(config.layers // 2, config.dim))


class GPT(nn.Module):
    """A causal transformer language model. Parameters start at zero: `initialise` them or load a state."""

    def __init__(self, config: GPTConfig, attend: Attend = torch_attention) -> None:
        super().__init__()
        self.config = config
        self.attend = attend
        self.embed = TokenEmbedding(config)
        self.bigram = BigramHash(config) if config.bigram.buckets else None
        self.memory = MemoryTokens(config) if config.memory_tokens else None
        self.smear = SmearGate(config) if config.smear else None
        self.ve = ValueEmbedding(config) if config.value_embedding.layers else None
        self.vr = ValueResidual(config) if config.value_residual == "additive" else None
        self.attn = AttentionBanks(config)
        self.mlp = MLPBanks(config)
        self.block = BlockScales(config)
        self.skip = Skips(config) if config.unet_skips and config.layers > 1 else None
        self.refiner = Refiner(config) if config.refiner.latent else None
        self.head = None if config.tied_head else Head(config)

    def forward(self, tokens_BT: Tensor, last: int = 0) -> Tensor:
        """Return logits_BTV in fp32 for token ids_BT (int64): at position t, for the token at t + 1.

        With `last`, only those of the last positions: a sliding window scores few of its positions.
        """
        config, device = self.config, tokens_BT.device
        dtype = self.compute_dtype(device)
        rope = rotary_tables(config.rope, config.head_dim, tokens_BT.shape[1], device)
        x_BTD = stem_BTD = self.stem(tokens_BT, dtype)
        extra = ExtraValues(None, None if self.ve is None else self.ve(tokens_BT, dtype))
        skips = () if self.skip is None else self.skip.weights.to(dtype).unbind()
        saved: list[Tensor] = []  # last in, first out: the innermost pair of blocks is joined first
        for layer, weights in enumerate(self.layer_weights(dtype)):
            if layer >= len(skips) and saved:
                x_BTD = torch.addcmul(x_BTD, saved.pop(), skips[layer - len(skips)])
            for _ in range(config.passes(layer)):
                x_BTD, v_BTGK = transformer_block(x_BTD, stem_BTD, weights, extra, config, rope, self.attend)
                extra = extra if layer else extra._replace(first=v_BTGK)
            if layer < len(skips):
                saved.append(x_BTD)
        x_BTD = rms_norm(x_BTD[:, -last:])  # -0: all of them
        return self.logits(x_BTD if self.refiner is None else self.refiner(x_BTD))

    def layer_weights(self, dtype: torch.dtype) -> list[LayerWeights]:
        """Every layer's weights as it computes with them."""
        values = value_gains(self.ve, self.vr, self.attn.value_mix, self.config, dtype)
        return layer_weights(self.attn, self.mlp, self.block, values, self.config, dtype)

    def stem(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Token and bigram embeddings, normalised, smeared: what the blocks start from and mix back in."""
        x_BTD = self.embed(tokens_BT).to(dtype)
        if self.bigram is not None:
            x_BTD = x_BTD + self.bigram(tokens_BT, dtype)
        x_BTD = rms_norm(x_BTD).to(dtype)
        if self.memory is not None:
            x_BTD = self.memory(x_BTD)
        return x_BTD if self.smear is None else self.smear(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Project onto the vocabulary and cap softly, in fp32 (or wider) after the matrix product."""
        weight_VD = self.embed.tokens if self.head is None else self.head.weight
        softcap = self.config.softcap
        if softcap:  # dividing here and not after the product touches D numbers per position, and not V
            x_BTD = x_BTD / softcap
        logits_BTV = functional.linear(x_BTD, weight_VD.to(x_BTD.dtype))
        logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
        return softcap * torch.tanh(logits_BTV) if softcap else logits_BTV

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype of the stream and of matrix products: autocast's where it is on, else the parameters'."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.embed.tokens.dtype
