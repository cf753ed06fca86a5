"""Knobs of `tokenize`. It is mapped: one run per document shard."""

from __future__ import annotations

from typing import ClassVar

from stages.config import StageConfig
from stages.contract import StageSpec


class Config(StageConfig):
    """One document shard and a tokenizer -> one token shard with its document index."""

    SPEC: ClassVar[StageSpec] = StageSpec(
        name="tokenize",
        inputs=("documents", "tokenizer"),
        outputs=("shards",),
        libraries=("sentencepiece", "pyarrow"),
        mapped=True,
    )
