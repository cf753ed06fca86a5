"""Which optimizer trains which parameter, by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

NamedParameters = list[tuple[str, nn.Parameter]]

GROUPS: dict[str, tuple[str, ...]] = {
    "matrix": ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down"),
    "auxiliary": ("bigram.proj", "ve.proj"),
    "embed": ("embed.tokens", "bigram.embed", "ve.embed", "memory.tokens"),
    "scalar": (
        "attn.q_gain",
        "attn.gate",
        "attn.gate_bias",
        "attn.value_mix",
        "block.attn_scale",
        "block.mlp_scale",
        "block.residual_mix",
        "skip.weights",
        "smear.gate",
        "bigram.scale",
        "ve.scale",
        "ve.layer_scales",
        "vr.scales",
        "refiner.down",
        "refiner.inner",
        "refiner.inner_bias",
        "refiner.outer",
        "refiner.outer_bias",
        "refiner.up",
        "refiner.gate",
    ),
    "head": ("head.weight",),
}
"""matrix: Muon; embed, scalar, head: AdamW, each with its own rate; auxiliary: with the matrices or with the scalars.

Banks of vectors are scalars whatever their rank, and so are the refiner's matrices, as published (PR #1232).
"""


def parameter_groups(model: nn.Module, aux_matrices: Literal["muon", "adamw"] = "muon") -> dict[str, NamedParameters]:
    """Sort the parameters of `model` into matrix, embed, scalar and head, in the model's order; any may be empty.

    aux_matrices: the projections of the bigram and value embeddings join the matrices (as in PRs #398, #417, #1033,
    #1232) or the scalars (#549, #714).
    A name that stands in no group is an error, so that no new parameter trains under a wrong optimizer by accident.
    """
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    groups: dict[str, NamedParameters] = {group: [] for group in GROUPS if group != "auxiliary"}
    for name, parameter in model.named_parameters():
        if name not in group_of:
            raise ValueError(f"every parameter has an optimizer group; {name!r} has none: add it to GROUPS")
        group = group_of[name]
        if group == "auxiliary":
            group = "matrix" if aux_matrices == "muon" else "scalar"
        groups[group].append((name, parameter))
    return groups
