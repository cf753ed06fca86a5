"""Dense causal attention: one function with interchangeable back ends, chosen by a probe that runs and compares.

Letters: B sequences, T positions, H query heads, G key/value heads (G divides H), N = H / G, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.config import GPTConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_BTHK, k_BTGK, v_BTGK) -> y_BTHK: causal softmax(q k / sqrt(K)) v; query head h reads key head h // (H / G)."""


def reference_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
    """The definition, in fp32 (fp64 for fp64 inputs) with the whole T x T matrix in memory: the truth of the probe."""
    dtype = torch.promote_types(q_BTHK.dtype, torch.float32)
    groups = q_BTHK.shape[2] // k_BTGK.shape[2]
    q_BHTK = q_BTHK.to(dtype).transpose(1, 2)
    k_BHTK, v_BHTK = (x.to(dtype).repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k_BTGK, v_BTGK))
    tokens = q_BTHK.shape[1]
    future_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=q_BTHK.device).triu(1)
    logits_BHTT = (q_BHTK @ k_BHTK.transpose(-1, -2) * q_BTHK.shape[-1] ** -0.5).masked_fill(future_TT, -torch.inf)
    return (logits_BHTT.softmax(dim=-1) @ v_BHTK).transpose(1, 2).to(q_BTHK.dtype)


def torch_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
    """torch's fused kernel for the device at hand (flash or cuDNN on a GPU, its own flash kernel on a CPU)."""
    q_BHTK, k_BGTK, v_BGTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    grouped = q_BTHK.shape[2] != k_BTGK.shape[2]
    y_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)
    return y_BHTK.transpose(1, 2)


def exclude_self(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Exclusive self-attention (arXiv:2603.09078): y - (y . u) u with u = v / |v| of the position's own value head.

    In fp32 or wider, since what is left may be a small difference; returned in y's dtype.
    """
    dtype = torch.promote_types(y_BTHK.dtype, torch.float32)
    unit_BTG1K = functional.normalize(v_BTGK.to(dtype), dim=-1).unsqueeze(3)
    y_BTGNK = y_BTHK.to(dtype).unflatten(2, (v_BTGK.shape[2], -1))
    along_BTGN1 = (y_BTGNK * unit_BTG1K).sum(dim=-1, keepdim=True)
    return (y_BTGNK - along_BTGN1 * unit_BTG1K).flatten(2, 3).to(y_BTHK.dtype)


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest relative error that a sound kernel makes in each dtype; a wrong mask or head mapping errs by about 1."""


@dataclass(frozen=True)
class AttentionChoice:
    """The back end that passed the probe, and why those before it did not."""

    name: str
    attend: Attend
    refused: dict[str, str]


def flash_attention_3() -> Attend | None:
    """FlashAttention 3 (Hopper), where its package is installed."""
    try:
        from flash_attn_interface import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return lambda q_BTHK, k_BTGK, v_BTGK: flash_attn_func(q_BTHK, k_BTGK, v_BTGK, causal=True)


def flash_attention_2() -> Attend | None:
    """FlashAttention 2, where its package is installed."""
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return lambda q_BTHK, k_BTGK, v_BTGK: flash_attn_func(q_BTHK, k_BTGK, v_BTGK, causal=True)


def attention_candidates(device: torch.device, dtype: torch.dtype) -> dict[str, Attend]:
    """What may run here, fastest first. The order is fixed: a choice by timing would change results between runs."""
    candidates: dict[str, Attend | None] = {}
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        candidates = {"flash-attn-3": flash_attention_3(), "flash-attn-2": flash_attention_2()}
    candidates |= {"torch": torch_attention, "reference": reference_attention}
    return {name: attend for name, attend in candidates.items() if attend is not None}


def attention_error(attend: Attend, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> float:
    """The worst relative error (Frobenius) of output and gradients against the reference on the same rounded inputs."""
    generator = torch.Generator().manual_seed(0)
    batch, tokens = 2, 160  # longer than one tile of any kernel, and not a power of two
    heads = (config.heads, config.kv_heads, config.kv_heads, config.heads)
    *inputs, weight_BTHK = (
        torch.randn(batch, tokens, count, config.head_dim, generator=generator).to(device, dtype) for count in heads
    )

    def run(function: Attend, precision: torch.dtype) -> list[Tensor]:
        leaves = [x.to(precision).detach().requires_grad_() for x in inputs]
        y_BTHK = function(*leaves)
        return [y_BTHK.detach(), *torch.autograd.grad(y_BTHK, leaves, weight_BTHK.to(y_BTHK.dtype))]

    truth = run(reference_attention, torch.promote_types(dtype, torch.float32))
    pairs = zip(run(attend, dtype), truth, strict=True)
    return max(float((got.to(want.dtype) - want).norm() / want.norm()) for got, want in pairs)


def choose_attention(
    config: GPTConfig, device: torch.device, dtype: torch.dtype, candidates: dict[str, Attend] | None = None
) -> AttentionChoice:
    """Run each back end forward and backward at the network's head shape; the first that agrees is taken.

    Raises RuntimeError if none does, with every back end's reason.
    """
    refused: dict[str, str] = {}
    for name, attend in (attention_candidates(device, dtype) if candidates is None else candidates).items():
        try:
            error = attention_error(attend, config, device, dtype)
        except Exception as reason:  # noqa: BLE001 - a kernel may fail in any way; the next one is tried
            refused[name] = f"{type(reason).__name__}: {reason}"
            continue
        if error <= TOLERANCE[dtype]:
            return AttentionChoice(name, attend, refused)
        refused[name] = f"relative error {error:.2g} above {TOLERANCE[dtype]:.2g} for {dtype}"
    raise RuntimeError(f"attention needs one back end that agrees with the reference; all were refused: {refused}")
