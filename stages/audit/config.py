"""Knobs of `audit`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Archive, val shards, scores, ledgers and records -> a verdict per rule, with evidence.

    Roles `scores` and `ledgers` have one folder per protocol, named as in the recipe: `<name>/score.json`,
    `<name>/ledger.json` and so on, as `evaluate` wrote them. `records` is the flow's account of all other steps.
    """

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="audit",
        inputs=(
            *("archive", "bundle", "sizes", "tokenizer", "val", "scores", "ledgers"),
            *("overlap", "records"),
        ),
        outputs=("verdict",),
        libraries=("torch",),
        accelerated=True,
    )

    protocols: dict[str, Any] = Field(
        default={},
        description="Set by the wiring: evaluate's whole configuration by protocol. Diagnostics are not audited, but "
        "they are part of what evaluation costs.",
    )
    evaluate_ranks: int = Field(default=1, ge=1, description="Set by the wiring: how many ranks evaluated.")
    challenge: dict[str, Any] = Field(
        default={}, description="Set by the wiring: the rules, limits and policies of configs/challenge.toml."
    )
    deep: bool = Field(default=False, description="Also what costs as much as scoring again, or needs a closed world.")
    share: float = Field(
        default=0.14, gt=0, le=1, description="Forward tokens of a quick audit, at most, as a share of evaluation's."
    )
    cuts: int = Field(
        default=512, ge=1, description="Perturbed futures in each state of a protocol, where the share allows them."
    )
