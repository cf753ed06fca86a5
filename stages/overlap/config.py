"""Knobs of `overlap`: how much of the validation set stands in the training shards."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """Train and val shards -> how many val documents, and which share of its shingles, were there to be trained on."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="overlap", inputs=("train", "val", "tokenizer"), outputs=("overlap",), libraries=("numpy",)
    )

    shingle_tokens: int = Field(
        default=64, ge=8, le=4096, description="Tokens of a shingle, all of one document. Unit: tokens."
    )
    max_samples: int = Field(
        default=1_048_576,
        ge=1024,
        description="Shingles of val that are looked up, at most: of more, a share is chosen by their hash. A million "
        "gives the rate to 0.1 %.",
    )
