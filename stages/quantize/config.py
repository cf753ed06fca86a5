"""Knobs of `quantize`: bits per tensor group, scale rule, clip search."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.config import StageConfig, Strict
from stages.contract import StageSpec


class GroupConfig(Strict):
    """How one group of tensors is stored."""

    bits: Literal[4, 5, 6, 7, 8, 16, 32] = Field(description="Bits per weight; 16 and 32 store floats.")
    clip: Literal["max", "quantile", "search"] = Field(
        "max",
        description="Row's clip: its largest magnitude, a fixed quantile, or GPTQ-lite's search over quantiles.",
    )
    quantile: float = Field(1.0, gt=0, le=1, description="The quantile of |w| in a row that clip 'quantile' takes.")
    scale_floor: float = Field(0.0, ge=0, description="Smallest scale (step) of a row; the published one is 1/31.")


class Config(StageConfig):
    """Float weights -> integer codes with a scale per row, and the error of each tensor."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="quantize",
        inputs=("weights", "shards"),
        outputs=("quantized", "errors"),
        libraries=("torch",),
        accelerated=True,
    )

    matrices: GroupConfig = Field(GroupConfig(bits=6, clip="search"), description="Attention and MLP matrices.")
    embeddings: GroupConfig = Field(
        GroupConfig(bits=8, clip="quantile", quantile=0.9999984), description="Token and bigram tables."
    )
    small: GroupConfig = Field(GroupConfig(bits=16), description="Everything of at most `small_weights` weights.")
    small_weights: int = Field(65_536, ge=0, description="Tensors of at most this many weights count as small.")
    search_quantiles: tuple[float, ...] = Field(
        (0.999, 0.9995, 0.9999, 0.99999, 1.0), min_length=1, description="Candidates of clip 'search'."
    )
    search_per: Literal["row", "matrix"] = Field("row", description="GPTQ-lite keeps the best candidate per this.")

    def reads(self) -> tuple[str, ...]:
        """The clip search needs no data."""
        return ("weights",)
