"""Knobs of `average`: which weights, or which mean of weights, go on."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Train's outputs -> one set of weights."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="average",
        inputs=("raw", "ema", "snapshots", "others"),
        outputs=("weights",),
        libraries=("torch",),
    )

    kind: Literal["raw", "ema", "swa", "tight_swa", "mean"] = Field(
        default="ema",
        description="raw: last step; ema; swa: mean of all snapshots; tight_swa: mean of the last ones; "
        "mean: of the raw weights of several runs that differ in their seed.",
    )
    seeds: tuple[int, ...] = Field(
        default=(), description="kind mean: seeds of the other runs in the mean; each is trained like this one."
    )
    last: int = Field(default=12, ge=1, description="Snapshots that tight_swa takes, counted from the end.")

    @model_validator(mode="after")
    def _mean_of_several(self) -> Self:
        if (self.kind == "mean") != bool(self.seeds):
            raise ValueError(
                f"average.seeds names the other runs of kind 'mean', at least one, and no other kind has any; "
                f"got kind {self.kind!r} with seeds {list(self.seeds)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"average.seeds are different from each other; got {list(self.seeds)}")
        return self

    def reads(self) -> tuple[str, ...]:
        """Only the chosen weights, so that the others never cause a rerun."""
        return {
            "raw": ("raw",),
            "ema": ("ema",),
            "swa": ("snapshots",),
            "tight_swa": ("snapshots",),
            "mean": ("raw", "others"),
        }[self.kind]
