"""Knobs of `weigh`: the cap."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Archive and bundle -> the size table against the cap; over it is an error."""

    SPEC: ClassVar[StageSpec] = StageSpec(name="weigh", inputs=("archive", "bundle"), outputs=("sizes",))

    cap_bytes: int = Field(
        default=16_000_000, ge=1, description="Code and model together, at most. Unit: decimal bytes."
    )
    allow_oversize: bool = Field(default=False, description="Go on over the cap; every later number carries the mark.")
