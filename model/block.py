"""One transformer block as pure functions over one layer's weights, and the banks that hold all layers' weights.

Matrices of equal shape are stacked over layers, so that the optimizer, averaging and quantisation work on few large
tensors; a forward pass casts, scales and unbinds each bank once. Scales that act on whole channels are multiplied into
the matrices there: the same function as scaling activations, for a fraction of the arithmetic.

Letters: L layers, B sequences, T positions, D width, H query heads, G key/value heads, K head width, F hidden width,
J = D + 2GK stacked output rows of q, k and v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import Attend
from model.config import GPTConfig
from model.mlp import feed_forward
from model.rotary import rotate

NORM_EPS = torch.finfo(torch.float32).eps  # stated, since torch's default follows the dtype of its input


def rms_norm(x: Tensor) -> Tensor:
    """x / root mean square of its last dimension; no weights."""
    return functional.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


class LayerWeights(NamedTuple):
    """What one block computes with, in compute dtype, channel scales multiplied in."""

    qkv_JD: Tensor
    o_DD: Tensor
    q_gain_H: Tensor
    up_FD: Tensor
    down_DF: Tensor
    residual_mix_2D: Tensor | None


class AttentionBanks(nn.Module):
    """Projections of all layers, in nn.Linear's order (out, in), and the gain per query head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        layers, dim, kv_dim = config.layers, config.dim, config.kv_dim
        self.q = nn.Parameter(torch.zeros(layers, dim, dim))
        self.k = nn.Parameter(torch.zeros(layers, kv_dim, dim))
        self.v = nn.Parameter(torch.zeros(layers, kv_dim, dim))
        self.o = nn.Parameter(torch.zeros(layers, dim, dim))
        self.q_gain = nn.Parameter(torch.zeros(layers, config.heads))


class MLPBanks(nn.Module):
    """Feed-forward matrices of all layers, in nn.Linear's order (out, in)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(config.layers, config.mlp_hidden, config.dim))
        self.down = nn.Parameter(torch.zeros(config.layers, config.dim, config.mlp_hidden))


class BlockScales(nn.Module):
    """Per-channel scales of both branches, and the mix of stream and stem before each block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        layers, dim = config.layers, config.dim
        self.attn_scale = nn.Parameter(torch.zeros(layers, dim))
        self.mlp_scale = nn.Parameter(torch.zeros(layers, dim))
        self.residual_mix = nn.Parameter(torch.zeros(layers, 2, dim)) if config.residual_mix else None


def layer_weights(
    attn: AttentionBanks, mlp: MLPBanks, block: BlockScales, config: GPTConfig, dtype: torch.dtype
) -> list[LayerWeights]:
    """Cast, scale and unbind every bank once; one entry per layer."""
    qkv_LJD, up_LFD = torch.cat((attn.q, attn.k, attn.v), dim=1), mlp.up
    if config.ln_scale:
        depth_L = torch.arange(1, config.layers + 1, device=up_LFD.device, dtype=up_LFD.dtype)
        scale_L11 = depth_L.rsqrt()[:, None, None]
        qkv_LJD, up_LFD = qkv_LJD * scale_L11, up_LFD * scale_L11
    o_LDD = attn.o * block.attn_scale[:, :, None]
    down_LDF = mlp.down * block.mlp_scale[:, :, None]
    mixes = [None] * config.layers if block.residual_mix is None else block.residual_mix.to(dtype).unbind()
    banks = (bank.to(dtype).unbind() for bank in (qkv_LJD, o_LDD, attn.q_gain, up_LFD, down_LDF))
    return [LayerWeights(*layer) for layer in zip(*banks, mixes, strict=True)]


def self_attention(
    x_BTD: Tensor, weights: LayerWeights, config: GPTConfig, rope: tuple[Tensor, Tensor], attend: Attend
) -> Tensor:
    """Causal grouped-query attention with normalised, rotated queries and keys."""
    batch, tokens, dim = x_BTD.shape
    head_dim = config.head_dim
    qkv_BTJ = functional.linear(x_BTD, weights.qkv_JD)
    q_BTHK, k_BTGK, v_BTGK = qkv_BTJ.view(batch, tokens, -1, head_dim).split(
        (config.heads, config.kv_heads, config.kv_heads), dim=2
    )
    q_BTHK = rotate(rms_norm(q_BTHK), *rope) * weights.q_gain_H[:, None]
    k_BTGK = rotate(rms_norm(k_BTGK), *rope)
    y_BTHK = attend(q_BTHK.to(v_BTGK.dtype), k_BTGK.to(v_BTGK.dtype), v_BTGK)
    return functional.linear(y_BTHK.reshape(batch, tokens, dim), weights.o_DD)


def transformer_block(
    x_BTD: Tensor,
    stem_BTD: Tensor,
    weights: LayerWeights,
    config: GPTConfig,
    rope: tuple[Tensor, Tensor],
    attend: Attend,
) -> Tensor:
    """Mix in the stem, then add attention, then add the feed-forward part; each reads a normalised stream."""
    if weights.residual_mix_2D is not None:
        keep_D, stem_D = weights.residual_mix_2D.unbind()
        x_BTD = torch.addcmul(x_BTD * keep_D, stem_BTD, stem_D)
    x_BTD = x_BTD + self_attention(rms_norm(x_BTD), weights, config, rope, attend)
    return x_BTD + feed_forward(rms_norm(x_BTD), weights.up_FD, weights.down_DF, config)
