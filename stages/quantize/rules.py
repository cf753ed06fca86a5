"""Which rule stores which matrix: its group's, an override's, or the group's with the bits that a budget leaves.

Rules are told by virtual names (`model/names.py`), one per layer of a bank: `blocks.8.attn.k`, `embed.tokens`. No torch
here: a recipe is checked before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from model.names import matching, virtual_names
from stages.quantize.groups import Group, group_of

if TYPE_CHECKING:
    from stages.quantize.config import Config, GroupConfig

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a matrix is stored; the fields of a `GroupConfig`."""

    bits: int
    clip: str = "max"
    quantile: float = 1.0
    scale_floor: float = 0.0
    full_range: bool = False
    prune: float = 0.0

    def with_bits(self, bits: int) -> Rule:
        """The same clip and the same floor of the clip with other bits: a floor of 1/31 at 6 bits is 1/15 at 5."""
        steps = (1 << self.bits - 1) - 1, (1 << bits - 1) - 1
        return replace(self, bits=bits, scale_floor=self.scale_floor * steps[0] / steps[1])


def rule_of(group: GroupConfig) -> Rule:
    """A group's configuration as a rule."""
    return Rule(
        bits=group.bits,
        clip=group.clip,
        quantile=group.quantile,
        scale_floor=group.scale_floor,
        full_range=group.full_range,
        prune=group.prune,
    )


def rules_for(shapes: Shapes, config: Config) -> dict[str, Rule]:
    """Virtual name -> rule, of every matrix and table; vectors have none.

    ValueError for an override that matches nothing, and for a matrix that two of them match.
    """
    found: dict[str, Rule] = {}
    for name, shape in shapes.items():
        group = group_of(name, shape, config.small_weights)
        if group != "vectors":
            rule = rule_of(_group(group, config))
            found |= dict.fromkeys(virtual_names(name, shape), rule)
    for pattern, override in config.overrides.items():
        matching([pattern], list(found), "quantize.overrides")
        for name in found:
            if fnmatchcase(name, pattern):
                found[name] = rule_of(override)
    refuse_two_overrides(list(found), list(config.overrides))
    return found


def refuse_two_overrides(names: Sequence[str], patterns: Sequence[str]) -> None:
    """A table of globs has no order that could decide."""
    for name in names:
        matched = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        if len(matched) > 1:
            raise ValueError(
                f"one override at most speaks for a matrix; quantize.overrides {matched[0]!r} and {matched[1]!r} both "
                f"match {name!r}; make their globs narrower"
            )


def fitted_names(shapes: Shapes, config: Config) -> list[str]:
    """The virtual names whose bits `fit` may choose: matrices that no override speaks for."""
    return [
        virtual
        for name, shape in shapes.items()
        if group_of(name, shape, config.small_weights) == "matrices"
        for virtual in virtual_names(name, shape)
        if not any(fnmatchcase(virtual, pattern) for pattern in config.overrides)
    ]


def _group(group: Group, config: Config) -> GroupConfig:
    return {"matrices": config.matrices, "embeddings": config.embeddings, "small": config.small}[group]
