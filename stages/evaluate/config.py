"""Knobs of `evaluate`: what is scored, and the fields of one scoring pass. It is mapped: one run per protocol."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.protocol import Protocol
from stages.config import StageConfig, with_fields
from stages.contract import StageSpec

if TYPE_CHECKING:

    class _Pass(StageConfig, Protocol):  # pyright: ignore[reportGeneralTypeIssues] - both are frozen
        """What `with_fields` makes."""

else:
    _Pass = with_fields(Protocol)


class Config(_Pass):
    """Archive or float weights, byte table and val shards -> score and per-token ledger, under one protocol."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="evaluate",
        inputs=("weights", "archive", "tokenizer", "val"),
        outputs=("score", "ledger"),
        libraries=("torch",),
        accelerated=True,
        mapped=True,
    )

    of: Literal["raw", "averaged", "archive"] = Field(
        default="archive",
        description="What is scored: train's raw weights, the averaged ones (diagnostics), or the archive.",
    )

    def to_protocol(self) -> Protocol:
        """The pass, as it is scored. Raises ValueError where its fields rule each other out."""
        return Protocol(**{each.name: getattr(self, each.name) for each in fields(Protocol)})

    @model_validator(mode="after")
    def _is_a_protocol(self) -> Self:
        self.to_protocol()
        return self

    def reads(self) -> tuple[str, ...]:
        """Float diagnostics read weights; everything that may be called a score reads the archive."""
        return ("archive" if self.of == "archive" else "weights", "tokenizer", "val")
