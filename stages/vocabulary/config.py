"""Knobs of `vocabulary`: train a SentencePiece model or import one."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field, field_validator

from stages.config import StageConfig
from stages.contract import StageSpec
from stages.urls import absolute, refuse_credentials


class Config(StageConfig):
    """Train documents -> a SentencePiece BPE model and its table of bytes per token id."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused URL holds a secret

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="vocabulary", inputs=("documents", "model"), outputs=("tokenizer",), libraries=("sentencepiece",)
    )
    LOCATIONS: ClassVar[tuple[str, ...]] = ("model",)

    size: int = Field(default=1024, ge=264, le=65_536, description="Pieces, byte and control pieces included.")
    model: str = Field(default="", description="fsspec URL of an existing .model to import; empty trains one.")
    sample_bytes: int = Field(
        default=16 << 20,
        ge=1 << 16,
        description="Text that training reads, taken evenly from the documents. Unit: bytes.",
    )
    character_coverage: float = Field(default=0.999, gt=0, le=1, description="Share of characters that get a piece.")

    @field_validator("model")
    @classmethod
    def _location(cls, url: str) -> str:
        return absolute(refuse_credentials(url))

    def reads(self) -> tuple[str, ...]:
        """An imported model needs no documents."""
        return ("model",) if self.model else ("documents",)
