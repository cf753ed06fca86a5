"""Knobs of `corpus`: where documents come from and how they are split into train and val."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from stages.config import StageConfig
from stages.contract import StageSpec
from stages.urls import absolute, refuse_credentials

EMBEDDED = "embedded"


class Config(StageConfig):
    """Documents anywhere -> Parquet shards of unique documents in a fixed order, train and val disjoint."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused URL holds a secret

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="corpus", inputs=("source",), outputs=("train", "val"), libraries=("pyarrow",)
    )
    LOCATIONS: ClassVar[tuple[str, ...]] = ("source", "val_source")

    source: str = Field(
        default=EMBEDDED,
        min_length=1,
        description="'embedded' (prose of the installation), a path, folder, glob, fsspec URL, or hf://datasets/... .",
    )
    val_source: str = Field(default="", description="A separate source for val, same forms; empty splits `source`.")
    format: Literal["auto", "text", "jsonl", "parquet", "shards"] = Field(
        default="auto",
        description="Reader; auto decides by the file name. 'shards' imports the challenge's .bin files.",
    )
    text_field: str = Field(default="text", description="Name of the text column of JSONL and Parquet sources.")
    val_fraction: float = Field(
        default=0.04,
        gt=0,
        lt=1,
        description="Share of documents that go to val, by content hash (embedded: share of the text, by package).",
    )
    val_documents: int = Field(
        default=0, ge=0, description="Take the first documents as val instead of a share; the challenge takes 50,000."
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop",
        description="Exact duplicates of an earlier document, in train or val; the challenge's export keeps them.",
    )
    max_documents: int = Field(default=0, ge=0, description="Stop after this many documents of `source`; 0 reads all.")
    shard_bytes: int = Field(
        default=64 << 20, ge=1 << 12, description="Target size of one document shard. Unit: bytes of UTF-8 text."
    )

    @field_validator("source", "val_source")
    @classmethod
    def _location(cls, url: str) -> str:
        return url if url == EMBEDDED else absolute(refuse_credentials(url))

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Self:
        if self.val_documents and (self.val_source or self.source == EMBEDDED):
            raise ValueError(
                "val_documents splits one outside source by position; got it with "
                f"{'val_source' if self.val_source else 'the embedded source'}; set one of them"
            )
        if self.format == "shards" and (self.max_documents or self.val_documents or self.source == EMBEDDED):
            raise ValueError(
                "published shards are imported whole, as their names or val_source split them; got format 'shards' "
                "with max_documents, val_documents or the embedded source; drop it, or narrow the glob"
            )
        return self
