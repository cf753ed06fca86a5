"""Which tensor belongs to which group, by name and size.

The published rule goes tensor by tensor over unstacked layers, so sizes count per matrix of a bank: at full size
`bigram.proj` has exactly 65,536 weights and stays fp16 (PR #398).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Group = Literal["matrices", "embeddings", "small", "vectors"]

NAMES: dict[Group, tuple[str, ...]] = {
    "matrices": ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "bigram.proj", "ve.proj"),
    "embeddings": (  # tables, and as published whatever else is large
        "embed.tokens",
        "bigram.embed",
        "ve.embed",
        "memory.tokens",
        "head.weight",
        "refiner.down",
        "refiner.inner",
        "refiner.outer",
        "refiner.up",
    ),
    "vectors": (
        "attn.q_gain",
        "attn.gate",
        "attn.gate_bias",
        "attn.value_mix",
        "bigram.scale",
        "block.attn_scale",
        "block.mlp_scale",
        "block.residual_mix",
        "refiner.gate",
        "refiner.inner_bias",
        "refiner.outer_bias",
        "skip.weights",
        "smear.gate",
        "ve.layer_scales",
        "ve.scale",
        "vr.scales",
    ),
}


def group_of(name: str, shape: Sequence[int], small_weights: int) -> Group:
    """The group of one tensor. A name that stands in no group is an error, so that nothing is stored by accident."""
    for group, names in NAMES.items():
        if name in names:
            small = group != "vectors" and shape[-2] * shape[-1] <= small_weights
            return "small" if small else group
    raise ValueError(f"every parameter has a quantisation group; {name!r} has none: add it to NAMES in groups.py")


def matrix_count(shape: Sequence[int]) -> int:
    """Matrices in a tensor, as published tables count them: the layers of a bank."""
    return shape[0] if len(shape) == 3 else 1
