"""Knobs of `evaluate`. It is mapped: one run per protocol."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, Strict
from stages.contract import StageSpec


class TttConfig(Strict):
    """Score-first test-time training: each chunk is scored, then trained on, never scored again."""

    chunk_tokens: int = Field(
        default=32_768, ge=1, description="Targets per chunk, the unit of adaptation. Unit: tokens."
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="Optimizer of the adapted weights.")
    lr: float = Field(default=0.002, ge=0, description="Learning rate before its cosine over the horizon.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD momentum, or AdamW's beta1.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's decay of the second moment.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    epochs: int = Field(default=3, ge=1, description="Passes over a scored chunk.")
    batch_sequences: int = Field(default=32, ge=1, description="Sequences per optimizer step, all ranks together.")
    clip_norm: float = Field(default=1.0, ge=0, description="Global gradient norm limit; 0 = no clipping.")
    freeze: tuple[str, ...] = Field(default=(), description="Globs of parameter names that do not adapt.")
    horizon_chunks: int = Field(
        default=0,
        ge=0,
        description="Declared length of the cosine, a constant and never the stream's length; 0 = constant lr.",
    )


class Config(StageConfig):
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
    protocol: Literal["roundtrip", "sliding", "ttt"] = Field(
        default="roundtrip",
        description="Non-overlapping rows, overlapping windows, or windows with score-first adaptation.",
    )
    context_tokens: int = Field(default=2048, ge=2, description="Window length. Unit: tokens.")
    stride_tokens: int = Field(default=64, ge=1, description="Step between windows (sliding, ttt). Unit: tokens.")
    batch_windows: int = Field(default=32, ge=1, description="Windows per forward pass and rank.")
    ttt: TttConfig = Field(default=TttConfig(), description="Adaptation; read by protocol 'ttt' only.")
    max_targets: int = Field(
        default=0,
        ge=0,
        description="Score only the first targets, for smoke runs; 0 = all. A partial score is marked as one.",
    )
    drop_partial_row: bool = Field(
        default=False,
        description="Leave out the targets after the last whole row of context_tokens, as published; marked.",
    )
    tail_rescore: bool = Field(
        default=False,
        description="Score the last targets again in truncated windows, as published; marked in every output.",
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="Matrix arithmetic; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="torch.compile; auto is on for a GPU.")

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.protocol != "roundtrip" and self.stride_tokens > self.context_tokens:
            raise ValueError(f"stride_tokens is at most context_tokens {self.context_tokens}; got {self.stride_tokens}")
        if self.protocol == "ttt" and self.ttt.chunk_tokens < self.context_tokens:
            raise ValueError(
                f"ttt.chunk_tokens holds at least one row of context_tokens {self.context_tokens}; got "
                f"{self.ttt.chunk_tokens}"
            )
        if self.tail_rescore and self.protocol == "roundtrip":
            raise ValueError("tail_rescore belongs to overlapping windows; use protocol sliding or ttt, or drop it")
        return self

    def reads(self) -> tuple[str, ...]:
        """Float diagnostics read weights; everything that may be called a score reads the archive."""
        return ("archive" if self.of == "archive" else "weights", "tokenizer", "val")
