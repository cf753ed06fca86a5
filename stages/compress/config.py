"""Knobs of `compress`: how codes become bytes and smaller bytes."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Quantised tensors -> one archive, proven to decode to its input."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="compress", inputs=("quantized",), outputs=("archive",), libraries=("torch", "zstandard")
    )

    codec: Literal["auto", "zstd", "lzma", "rans", "xz", "zlib"] = Field(
        default="auto",
        description="Entropy coder: zstd, lzma, or our context coder of integer codes (floats then take the smaller "
        "of the other two); auto takes the smallest per section, judged on its first 2 million numbers. As published: "
        "xz (lzma in its container), zlib.",
    )
    level: int = Field(default=22, ge=0, le=22, description="Level of zstd, 1 to 22, or of xz and zlib, 0 to 9.")
    constants: dict[str, int | float | str] = Field(
        default={}, description="Values that scoring may read from the archive, such as a declared TTT horizon."
    )

    @model_validator(mode="after")
    def _level_exists(self) -> Self:
        low, high = (0, 9) if self.codec in ("xz", "zlib") else (1, 22)
        if not low <= self.level <= high:
            raise ValueError(
                f"codec {self.codec!r} has levels {low} to {high}; compress.level is {self.level}; choose one of them"
            )
        return self
