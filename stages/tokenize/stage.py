"""One document shard and a tokenizer -> one token shard with its document index."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.bytes import ByteTable
from model.shards import ShardWriter, open_shard
from stages.contract import Runtime, StageError, fresh_role
from stages.tokenize.config import Config
from stages.tokenize.encode import encode, load_pieces
from stages.tokenize.index import index, write_index


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `shards/<stem>.bin` and `shards/<stem>.index.parquet`, named after the one document file."""
    del config
    pieces = load_pieces(inputs["tokenizer"])
    table = ByteTable.load(inputs["tokenizer"] / "bytes.npy")
    source = _only_file(inputs["documents"])
    folder = fresh_role(out, "shards")
    shard = folder / f"{source.stem}.bin"
    ids: list[str] | None = None
    raw_bytes: list[int] | None = None
    if source.suffix == ".bin":
        _verified(source, table.vocab)  # before the copy: a shard of another tokenizer is told at once
        shutil.copyfile(source, shard)
    else:
        ids, raw_bytes = [], []
        with ShardWriter(shard) as writer:
            for batch in encode(source, pieces, runtime.workers, _teller(runtime)):
                writer.append(batch.tokens)
                ids += batch.ids
                raw_bytes += batch.raw_bytes
    tokens = _verified(shard, table.vocab)
    rows = index(tokens, pieces.bos_id(), table)
    if ids is not None and len(ids) != len(rows[0]):
        raise RuntimeError(f"{len(ids)} documents went in and {len(rows[0])} came out of {shard.name}")
    write_index(folder / f"{source.stem}.index.parquet", rows, raw_bytes, ids)
    text_bytes = int(rows[2].sum())
    return {
        "documents": len(rows[0]),
        "tokens": len(tokens),
        "bytes": text_bytes,
        "raw_bytes": sum(raw_bytes) if raw_bytes is not None else None,
        "bytes_per_token": text_bytes / max(1, len(tokens)),
    }


def _only_file(folder: Path) -> Path:
    files = sorted(folder.iterdir())
    if len(files) != 1 or files[0].suffix not in (".parquet", ".bin"):
        got = ", ".join(f.name for f in files) or "nothing"
        raise StageError(f"tokenize reads one document or token shard at a time; got {got}; give one .parquet or .bin")
    return files[0]


def _verified(path: Path, vocab: int) -> np.ndarray:
    try:
        return open_shard(path, vocab)
    except ValueError as error:
        raise StageError(str(error)) from error


def _teller(runtime: Runtime) -> Any:
    return lambda done, total: runtime.report_progress(done, total, "documents")
