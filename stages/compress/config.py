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

    codec: Literal["auto", "zstd", "lzma", "rans"] = Field(
        default="auto",
        description="Entropy coder: zstd, lzma, or our context coder of integer codes (floats then take the smaller "
        "of the other two); auto takes the smallest per section, judged on its first 2 million numbers.",
    )
    level: int = Field(default=22, ge=1, le=22, description="zstd level.")
    constants: dict[str, int | float | str] = Field(
        default={}, description="Values that scoring may read from the archive, such as a declared TTT horizon."
    )
