"""Which optimizer trains which parameter, by name."""

from __future__ import annotations

from torch import nn

NamedParameters = list[tuple[str, nn.Parameter]]

GROUPS: dict[str, tuple[str, ...]] = {
    "matrix": ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "bigram.proj"),
    "embed": ("embed.tokens", "bigram.embed"),
    "scalar": (
        "attn.q_gain",
        "block.attn_scale",
        "block.mlp_scale",
        "block.residual_mix",
        "skip.weights",
        "smear.gate",
        "bigram.scale",
    ),
    "head": ("head.weight",),
}
"""matrix: Muon; the others: AdamW, each with its own rate. Banks of vectors are scalars whatever their rank."""


def parameter_groups(model: nn.Module) -> dict[str, NamedParameters]:
    """Sort the parameters that `model` has into `GROUPS`, in the model's order; a group may be empty.

    A name that stands in no group is an error, so that no new parameter trains under a wrong optimizer by accident.
    """
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    groups: dict[str, NamedParameters] = {group: [] for group in GROUPS}
    for name, parameter in model.named_parameters():
        if name not in group_of:
            raise ValueError(f"every parameter has an optimizer group; {name!r} has none: add it to GROUPS")
        groups[group_of[name]].append((name, parameter))
    return groups
