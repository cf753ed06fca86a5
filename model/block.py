"""One transformer block as pure functions over one layer's weights, and the banks that hold all layers' weights.

Matrices of equal shape are stacked over layers, so that the optimizer, averaging and quantisation work on few large
tensors; a forward pass casts, scales and unbinds each bank once. Scales that act on whole channels are multiplied into
the matrices there: the same function as scaling activations, for a fraction of the arithmetic.

Letters: L layers, B sequences, T positions, D width, H query heads, G key/value heads, K head width, F hidden width,
E = GK rows of k or v, J = D + 2E stacked rows of q, k and v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import Attend, exclude_self
from model.config import GPTConfig
from model.mlp import feed_forward
from model.rotary import rotate
from model.values import ExtraValues, ValueGains, add_values

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
    gate_HD: Tensor | None
    gate_bias_H: Tensor | None
    values: ValueGains
    exclusive: bool


class AttentionBanks(nn.Module):
    """Projections of all layers, in nn.Linear's order (out, in), and the gain and gate per query head.

    `value_mix` holds (gain of layer 0's value, gain of the own one) per layer; layer 0's pair is unused, as published.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        layers, dim, kv_dim = config.layers, config.dim, config.kv_dim
        self.q = nn.Parameter(torch.zeros(layers, dim, dim))
        self.k = nn.Parameter(torch.zeros(layers, kv_dim, dim))
        self.v = nn.Parameter(torch.zeros(layers, kv_dim, dim))
        self.o = nn.Parameter(torch.zeros(layers, dim, dim))
        self.q_gain = nn.Parameter(torch.zeros(layers, config.heads))
        gated = config.gated_attention
        self.gate = nn.Parameter(torch.zeros(layers, config.heads, dim)) if gated else None
        self.gate_bias = nn.Parameter(torch.zeros(layers, config.heads)) if gated else None
        self.value_mix = nn.Parameter(torch.zeros(layers, 2)) if config.value_residual == "mix" else None


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
    attn: AttentionBanks,
    mlp: MLPBanks,
    block: BlockScales,
    values: list[ValueGains],
    config: GPTConfig,
    dtype: torch.dtype,
) -> list[LayerWeights]:
    """Cast, scale and unbind every bank once; one entry per layer."""
    v_LED = attn.v if attn.value_mix is None else attn.v * own_gains(attn.value_mix)[:, None, None]
    qkv_LJD, gate_LHD, up_LFD = torch.cat((attn.q, attn.k, v_LED), dim=1), attn.gate, mlp.up
    if config.ln_scale:
        depth_L = torch.arange(1, config.layers + 1, device=up_LFD.device, dtype=up_LFD.dtype)
        scale_L11 = depth_L.rsqrt()[:, None, None]
        qkv_LJD, up_LFD = qkv_LJD * scale_L11, up_LFD * scale_L11
        gate_LHD = None if gate_LHD is None else gate_LHD * scale_L11
    o_LDD = attn.o * block.attn_scale[:, :, None]
    down_LDF = mlp.down * block.mlp_scale[:, :, None]
    banks = (qkv_LJD, o_LDD, attn.q_gain, up_LFD, down_LDF, block.residual_mix, gate_LHD, attn.gate_bias)
    unbound = ([None] * config.layers if bank is None else bank.to(dtype).unbind() for bank in banks)
    exclusive = [layer in config.xsa_layers for layer in range(config.layers)]
    return [LayerWeights(*layer) for layer in zip(*unbound, values, exclusive, strict=True)]


def own_gains(value_mix_L2: Tensor) -> Tensor:
    """What multiplies each layer's own values; layer 0 mixes nothing."""
    return torch.cat((value_mix_L2.new_ones(1), value_mix_L2[1:, 1]))


def self_attention(
    x_BTD: Tensor,
    weights: LayerWeights,
    extra: ExtraValues,
    config: GPTConfig,
    rope: tuple[Tensor, Tensor],
    attend: Attend,
) -> tuple[Tensor, Tensor]:
    """Causal grouped-query attention with normalised, rotated queries and keys; also returns the projected values."""
    batch, tokens, dim = x_BTD.shape
    head_dim = config.head_dim
    qkv_BTJ = functional.linear(x_BTD, weights.qkv_JD)
    q_BTHK, k_BTGK, own_BTGK = qkv_BTJ.view(batch, tokens, -1, head_dim).split(
        (config.heads, config.kv_heads, config.kv_heads), dim=2
    )
    q_BTHK = rotate(rms_norm(q_BTHK), *rope) * weights.q_gain_H[:, None]
    k_BTGK = rotate(rms_norm(k_BTGK), *rope)
    v_BTGK = add_values(own_BTGK, extra, weights.values)
    y_BTHK = attend(q_BTHK.to(v_BTGK.dtype), k_BTGK.to(v_BTGK.dtype), v_BTGK)
    if weights.exclusive:
        y_BTHK = exclude_self(y_BTHK, v_BTGK)
    if weights.gate_HD is not None:
        gate_BTH = torch.sigmoid(functional.linear(x_BTD, weights.gate_HD, weights.gate_bias_H))
        y_BTHK = y_BTHK * gate_BTH[..., None]
    return functional.linear(y_BTHK.reshape(batch, tokens, dim), weights.o_DD), own_BTGK


def transformer_block(
    x_BTD: Tensor,
    stem_BTD: Tensor,
    weights: LayerWeights,
    extra: ExtraValues,
    config: GPTConfig,
    rope: tuple[Tensor, Tensor],
    attend: Attend,
) -> tuple[Tensor, Tensor]:
    """Mix in the stem, then add attention, then add the feed-forward part; each reads a normalised stream.

    Returns the stream and the layer's projected values.
    """
    if weights.residual_mix_2D is not None:
        keep_D, stem_D = weights.residual_mix_2D.unbind()
        x_BTD = torch.addcmul(x_BTD * keep_D, stem_BTD, stem_D)
    y_BTD, own_BTGK = self_attention(rms_norm(x_BTD), weights, extra, config, rope, attend)
    x_BTD = x_BTD + y_BTD
    return x_BTD + feed_forward(rms_norm(x_BTD), weights.up_FD, weights.down_DF, config), own_BTGK
