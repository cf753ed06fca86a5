"""Train and val shards -> what of val stands in train. One artifact per pair of them, whatever is trained on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from model.shards import open_shard
from stages.contract import Runtime, StageError, fresh_role
from stages.overlap.config import Config
from stages.overlap.measure import measure, read_val


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `overlap/overlap.json`."""
    bos = _bos(inputs["tokenizer"] / "tokenizer.model")
    train, val = _shards(inputs["train"], "train"), _shards(inputs["val"], "val")
    total = sum(len(shard) for shard in train)
    looked_for = read_val(val, bos, config.shingle_tokens, config.max_samples)
    table = measure(
        looked_for,
        train,
        bos,
        config.shingle_tokens,
        lambda done: runtime.report_progress(done, total, "tokens"),
    )
    path = fresh_role(out, "overlap") / "overlap.json"
    path.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return {
        "val_documents": table["documents"]["val"],
        "documents_found": table["documents"]["found"],
        "shingle_rate": table["shingles"]["rate"],
        "train_tokens": table["train"]["tokens"],
    }


def _bos(path: Path) -> int:
    try:
        bos = sentencepiece.SentencePieceProcessor(model_file=str(path)).bos_id()
    except (OSError, RuntimeError) as error:
        raise StageError(f"a tokenizer is a SentencePiece .model file; {path.name} does not load: {error}") from error
    if bos < 0:
        raise StageError(f"documents are told apart by BOS; {path.name} has no such piece; use another tokenizer")
    return bos


def _shards(folder: Path, split: str) -> list[np.ndarray]:
    """The shards in the order of their names. Their ids were verified when `tokenize` wrote them."""
    paths = sorted(folder.glob("*.bin"))
    if not paths:
        raise StageError(f"overlap compares token shards, *.bin; {split} has none; run `tokenize` on its documents")
    try:
        return [open_shard(path) for path in paths]
    except ValueError as error:
        raise StageError(str(error)) from error
