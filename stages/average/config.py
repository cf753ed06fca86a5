"""Knobs of `average`: which weights, or which mean of weights, go on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

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
        "mean: of the raw weights of several runs.",
    )
    last: int = Field(default=12, ge=1, description="Snapshots that tight_swa takes, counted from the end.")

    def reads(self) -> tuple[str, ...]:
        """Only the chosen weights, so that the others never cause a rerun."""
        return {
            "raw": ("raw",),
            "ema": ("ema",),
            "swa": ("snapshots",),
            "tight_swa": ("snapshots",),
            "mean": ("raw", "others"),
        }[self.kind]
