"""Knobs of `quantize`: bits per tensor group, scale rule, clip search."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, Strict
from stages.contract import StageSpec


class GroupConfig(Strict):
    """How one group of tensors is stored."""

    bits: Literal[4, 5, 6, 7, 8, 16, 32] = Field(description="Bits per weight; 16 and 32 store floats.")
    clip: Literal["max", "quantile", "search"] = Field(
        default="max",
        description="Row's clip: its largest magnitude, a fixed quantile, or GPTQ-lite's search over quantiles.",
    )
    quantile: float = Field(
        default=1.0, gt=0, le=1, description="The quantile of |w| in a row that clip 'quantile' takes."
    )
    scale_floor: float = Field(
        default=0.0, ge=0, description="Smallest scale (step) of a row; the published one is 1/31."
    )
    full_range: bool = Field(
        default=False,
        description="Also use the code -2^(bits - 1), which has no positive twin, as the published int6 does.",
    )
    prune: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Magnitude pruning before rounding: weights below this quantile of |w| in their matrix become 0; "
        "0 = off.",
    )


class FitConfig(Strict):
    """Bits per matrix under a budget: what size the archive will have is predicted, from the entropy of the codes."""

    budget_bytes: int = Field(
        default=0, ge=0, description="Predicted size of the archive, at most; 0 = off. Unit: decimal bytes."
    )
    order: Literal["error", "middle"] = Field(
        default="error",
        description="error: bits go where they lower a matrix's relative squared error most per byte. middle: layers "
        "go from most to fewest bits whole, from the middle outward, until the rest fits (the fallback of #1232).",
    )
    bits: tuple[int, ...] = Field(default=(5, 6, 7), min_length=2, description="Bits to choose from, ascending.")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.bits) != sorted(set(self.bits)) or not 4 <= self.bits[0] <= self.bits[-1] <= 8:
            raise ValueError(f"fit.bits are whole numbers of 4 to 8, ascending; got {list(self.bits)}")
        return self


class Config(StageConfig):
    """Float weights -> integer codes with a scale per row, and the error of each tensor."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="quantize",
        inputs=("weights", "shards"),
        outputs=("quantized", "errors"),
        libraries=("torch",),
        accelerated=True,
    )

    matrices: GroupConfig = Field(
        default=GroupConfig(bits=6, clip="search"), description="Matrices of attention and MLP."
    )
    embeddings: GroupConfig = Field(
        default=GroupConfig(bits=8, clip="quantile", quantile=0.9999984),
        description="Tables, an untied head, and what else is large.",
    )
    small: GroupConfig = Field(
        default=GroupConfig(bits=16), description="Matrices and tables of at most `small_weights` weights; floats."
    )
    overrides: dict[str, GroupConfig] = Field(
        default={},
        description="Glob of matrices and tables, such as *.mlp.* or blocks.8.attn.k -> the rule in place of their "
        "group's, small ones included; each is matched once at most.",
    )
    fit: FitConfig = Field(default=FitConfig(), description="Bits of each matrix by a byte budget.")
    small_weights: int = Field(
        default=65_536,
        ge=0,
        description="A matrix or table of at most this many weights is small; a bank counts per matrix.",
    )
    vector_bits: Literal[16, 32] = Field(
        default=16, description="Gains, scales, gates and other vectors: fp16 or fp32."
    )
    search_quantiles: tuple[float, ...] = Field(
        default=(0.999, 0.9995, 0.9999, 0.99999, 1.0),
        min_length=1,
        description="Candidates of clip 'search', each in (0, 1].",
    )
    search_per: Literal["row", "matrix"] = Field(
        default="row", description="GPTQ-lite keeps the best candidate per this."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.small.bits < 16:
            raise ValueError(
                f"small tensors are floats, small.bits is 16 or 32; got {self.small.bits}; "
                "lower small_weights to code more"
            )
        if self.fit.budget_bytes and self.matrices.bits > 8:
            raise ValueError(
                f"fit chooses the bits of coded matrices; matrices.bits is {self.matrices.bits}, a float; set 4 to 8"
            )
        if not all(0 < quantile <= 1 for quantile in self.search_quantiles):
            raise ValueError(f"search_quantiles lie in (0, 1]; got {list(self.search_quantiles)}")
        return self

    def reads(self) -> tuple[str, ...]:
        """The clip search needs no data."""
        return ("weights",)
