"""Dense causal attention: one function with interchangeable back ends, chosen by a probe that runs and compares.

Letters: B sequences, T positions, H query heads, G key/value heads (G divides H), K head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

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
