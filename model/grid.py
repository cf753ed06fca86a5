"""The grid that weights are rounded to: one scale per row, integer codes around zero.

Quantisation, quantisation-aware training and the archive share this one type, so that they cannot disagree. Four verbs:
choose params (`choose_scales`), `quantize` with them, `dequantize`, and `pack` / `unpack` codes to and from bits.

Shapes: R rows of C columns; leading dimensions of a bank [L, R, C] pass through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-24  # fp16's smallest positive number: a row of zeros still has a scale to divide by


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Codes -`top` .. `top` (or one more below zero), times a row's fp16 scale.

    The published int6 rule is `Grid(bits=6, floor=1 / 31, full_range=True)`: PR #398, `clamp(round(w / s), -32, 31)`.
    """

    bits: int
    """Width of a code, 2 to 8."""
    floor: float = 0.0
    """Smallest scale. Above 0 it acts as rate control: rows of small weights use fewer codes (spec: 1 / top)."""
    full_range: bool = False
    """Also use the code -2^(bits - 1), which has no positive twin."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"a grid has 2 to 8 bits; got {self.bits}")

    @property
    def top(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def bottom(self) -> int:
        """The smallest code."""
        return -self.top - self.full_range


def choose_scales(clip_R: Tensor, grid: Grid) -> Tensor:
    """The fp16 scale of each row whose magnitudes up to `clip_R` (fp32, any shape) shall be on the grid."""
    scale_R = row_scales(clip_R, grid)
    if not torch.isfinite(scale_R).all():
        raise ValueError(
            f"a row's scale fits in fp16, at most 65504; got clip {clip_R.max().item():g}; train it smaller"
        )
    return scale_R


def row_scales(clip_R: Tensor, grid: Grid) -> Tensor:
    """`choose_scales` without its check, which a compiled graph cannot hold: too large a clip gives infinity."""
    return (clip_R / grid.top).clamp_min(grid.floor).to(torch.float16).clamp_min(SMALLEST_SCALE)


def quantize(w_RC: Tensor, scale_R: Tensor, grid: Grid) -> Tensor:
    """int8 codes of w_RC; ties round to even. A code's error is at most half a step where |w| is inside the clip."""
    return (w_RC / scale_R.float()[..., None]).round_().clamp_(grid.bottom, grid.top).to(torch.int8)


def dequantize(codes_RC: Tensor, scale_R: Tensor) -> Tensor:
    """fp32 weights: code times scale, exactly, since 8-bit code and 11-bit scale fit in fp32's mantissa."""
    return codes_RC.float() * scale_R.float()[..., None]


def soft_round_residual(x: Tensor, temperature: Tensor | float) -> Tensor:
    """nearest + tanh((x - nearest) / T) / 2, as published (PR #1033); its own derivative is the gradient.

    For small T this is half a step beside the nearest code, where a rounding would be on it.
    """
    nearest = x.detach().round()
    return nearest + 0.5 * torch.tanh((x - nearest) / temperature)


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Integer codes in [-2^(bits-1), 2^(bits-1)) as `bits` bits each, most significant first, last byte zero-padded.

    >>> pack(np.array([-1, 1, 0]), 2).hex()
    'd0'
    """
    half = 1 << (bits - 1)
    if codes.size and not -half <= int(codes.min()) <= int(codes.max()) < half:
        raise ValueError(f"codes of {bits} bits lie in [{-half}, {half}); got {codes.min()} .. {codes.max()}")
    unsigned = (codes.reshape(-1, 1).astype(np.int16) & ((1 << bits) - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(unsigned, axis=1)[:, 8 - bits :]).tobytes()


def unpack(packed: bytes, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: `count` codes as int8. Refuses a wrong length and non-zero padding."""
    if len(packed) != -(-count * bits // 8):
        raise ValueError(f"{count} codes of {bits} bits are {-(-count * bits // 8)} bytes; got {len(packed)}")
    rows = np.unpackbits(np.frombuffer(packed, np.uint8))
    if rows[count * bits :].any():
        raise ValueError("the padding after the last packed code is zero; the data is damaged")
    wide = np.zeros((count, 8), np.uint8)
    wide[:, 8 - bits :] = rows[: count * bits].reshape(count, bits)
    unsigned = np.packbits(wide, axis=1)[:, 0]
    half = 1 << (bits - 1)
    return ((unsigned ^ half).astype(np.int16) - half).astype(np.int8)
