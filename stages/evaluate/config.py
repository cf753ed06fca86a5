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


class MixerConfig(Strict):
    """An expert that counts each chunk once it is scored, blended with the network's prediction."""

    kind: Literal["off", "ngram", "ppm", "published_ngram"] = Field(
        default="off",
        description="Exact n-gram counts with absolute discounting, or with PPM-C's escapes; or #1033's hashed ratio, "
        "which is no probability: its score carries rule C2.",
    )
    max_order: int = Field(default=5, ge=2, le=32, description="Longest n-gram, its target included. Unit: tokens.")
    discount: float = Field(
        default=0.75, gt=0, lt=1, description="Taken from each count for shorter contexts (kind ngram)."
    )
    buckets: int = Field(
        default=4_194_304, ge=1, description="Entries of each of the two hash tables per order (kind published_ngram)."
    )
    min_count: int = Field(default=2, ge=1, description="Least count of a context that is used (kind published_ngram).")
    weight: float = Field(default=0.05, ge=0, lt=1, description="Least weight of the expert.")
    weight_span: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Rise of the weight with the entropy H of the network's prediction: weight + weight_span * "
        "sigmoid(2 * (H - weight_center)); 0 = constant weight.",
    )
    weight_center: float = Field(default=3.0, ge=0, description="Entropy at half the rise. Unit: nats.")
    active_after_tokens: int = Field(
        default=10_000, ge=0, description="The expert is silent until it has counted this many. Unit: tokens."
    )
    chunk_tokens: int = Field(
        default=32_768,
        ge=1,
        description="Targets scored between updates (protocol sliding; ttt has its own chunks). Unit: tokens.",
    )

    @model_validator(mode="after")
    def _is_a_weight(self) -> Self:
        if not 0 < self.weight + self.weight_span < 1:
            raise ValueError(
                "weight and weight_span add up to a number between 0 and 1, the expert's greatest weight; got "
                f"{self.weight} + {self.weight_span}; for no expert set kind = 'off'"
            )
        return self


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
    mixer: MixerConfig = Field(default=MixerConfig(), description="Blended expert, in protocols sliding and ttt.")
    temperature: float = Field(
        default=1.0, gt=0, description="Logits are divided by this before anything else; 1 = as they are."
    )
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
        if self.mixer.kind != "off" and self.protocol == "roundtrip":
            raise ValueError(
                f"a mixer belongs to protocol sliding or ttt, whose windows overlap; mixer.kind is "
                f"{self.mixer.kind!r} and protocol is 'roundtrip'; change one of them"
            )
        if self.mixer.kind != "off" and self.protocol == "sliding" and self.mixer.chunk_tokens < self.stride_tokens:
            raise ValueError(
                f"mixer.chunk_tokens holds at least one stride of {self.stride_tokens}; got {self.mixer.chunk_tokens}"
            )
        return self

    @property
    def chunk_tokens(self) -> int:
        """Targets between updates of network or expert; 0 for a score that learns nothing."""
        if self.protocol == "ttt":
            return self.ttt.chunk_tokens
        return self.mixer.chunk_tokens if self.mixer.kind != "off" else 0

    def reads(self) -> tuple[str, ...]:
        """Float diagnostics read weights; everything that may be called a score reads the archive."""
        return ("archive" if self.of == "archive" else "weights", "tokenizer", "val")
