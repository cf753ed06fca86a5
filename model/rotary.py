"""Rotary position embedding (arXiv:2104.09864) in fp32, without any state.

The tables are computed in every forward pass from Python constants: a cached table is wrong after a change of length,
device or inference mode, and a buffer is rounded by `model.bfloat16()`. Half-split pairing: dimension r turns with
dimension r + R.

Letters: B sequences, T positions, H heads, K head width, R rotated pairs (2R <= K).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import RopeConfig


def rotary_base(rope: RopeConfig, dims: int, tokens: int) -> float:
    """The base for sequences of `tokens` positions: beyond the reference length it grows by the NTK rule."""
    # One pair (dims = 2) turns by exactly one radian per position whatever the base, and the exponent has no value.
    if not rope.reference_tokens or tokens <= rope.reference_tokens or dims == 2:
        return rope.base
    return rope.base * (tokens / rope.reference_tokens) ** (dims / (dims - 2))


def rotary_tables(rope: RopeConfig, head_dim: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos_TR and sin_TR in fp32 for positions 0 .. tokens - 1."""
    dims = rope.dims or head_dim
    base = rotary_base(rope, dims, tokens)
    turns_R = 1.0 / base ** (torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims)
    angle_TR = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * turns_R
    return angle_TR.cos(), angle_TR.sin()


def rotate(x_BTHK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turn the first 2R dimensions of each head by its position's angles; the others pass unchanged. fp32 or wider."""
    pairs = cos_TR.shape[-1]
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    a_BTHR, b_BTHR, rest = x_BTHK.split((pairs, pairs, x_BTHK.shape[-1] - 2 * pairs), dim=-1)
    turned = (a_BTHR * cos_T1R + b_BTHR * sin_T1R, b_BTHR * cos_T1R - a_BTHR * sin_T1R)
    return torch.cat((*turned, rest) if rest.shape[-1] else turned, dim=-1)
