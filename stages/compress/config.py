"""Knobs of `compress`: how codes become bytes and smaller bytes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Quantised tensors -> one archive, proven to decode to its input."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="compress", inputs=("quantized",), outputs=("archive",), libraries=("torch", "zstandard")
    )

    codec: Literal["auto", "zstd", "lzma"] = Field(
        "auto",
        description="Entropy coder of the byte streams; auto keeps the smaller of zstd and lzma per stream.",
    )
    level: int = Field(22, ge=1, le=22, description="zstd level.")
