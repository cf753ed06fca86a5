"""Knobs of `corpus`: where documents come from and how they are split into train and val."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Documents anywhere -> Parquet shards of unique documents in a fixed order, train and val disjoint."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="corpus", inputs=("source",), outputs=("train", "val"), libraries=("pyarrow",)
    )
    LOCATIONS: ClassVar[tuple[str, ...]] = ("source", "val_source")

    source: str = Field(
        "embedded",
        description="'embedded' (prose of the installation), an fsspec URL or glob, or hf://datasets/... .",
    )
    val_source: str = Field("", description="A separate source for val, same forms; empty splits `source`.")
    format: Literal["auto", "text", "jsonl", "parquet", "shards"] = Field(
        "auto",
        description="Reader; auto decides by the file name. 'shards' imports the challenge's .bin files.",
    )
    text_field: str = Field("text", description="Name of the text column of JSONL and Parquet sources.")
    val_fraction: float = Field(
        0.04,
        gt=0,
        lt=1,
        description="Share of documents (embedded: of groups) that go to val, by content hash.",
    )
    max_documents: int = Field(0, ge=0, description="Stop after this many documents of the source; 0 = all.")
    shard_bytes: int = Field(
        64 << 20, ge=1 << 12, description="Target size of one document shard. Unit: bytes of UTF-8 text."
    )
