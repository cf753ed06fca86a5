"""Knobs of `bundle`: the packed code that would be submitted."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Our modules and the recipe -> one packed Python file; its bytes count against the cap."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="bundle", inputs=("source",), outputs=("bundle",), libraries=("python", "python-minifier")
    )

    recipe: dict[str, Any] = Field(default={}, description="The resolved recipe, seed-free; the wiring fills it in.")
