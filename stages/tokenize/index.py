"""The document index of a shard: where each document starts, its tokens and its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.bytes import ByteTable

BLOCK_TOKENS = 1 << 22  # memory is bounded by blocks and by the number of documents, not by the shard

SCHEMA = pa.schema(
    [
        ("start", pa.int64()),  # position of the document's first token in the shard, its BOS
        ("tokens", pa.int64()),  # BOS included
        ("bytes", pa.int64()),  # of the text as the tokenizer normalised it: what BPB divides by
        ("raw_bytes", pa.int64()),  # of the document as it came; null where only tokens are known
        ("id", pa.string()),  # the document's id in the corpus; null where only tokens are known
    ]
)


def index(tokens: np.ndarray, bos: int, table: ByteTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, tokens, bytes) int64 [documents] of a stream of ids [N]; a document starts at each BOS, and at 0.

    A published shard may start inside a document: its first row is then the rest of that document, and its first
    token counts as if it followed a boundary, since the token before it lies in another shard.
    """
    starts = np.concatenate([*_starts(tokens, bos)]) if len(tokens) else np.empty(0, dtype=np.int64)
    sizes = np.diff(starts, append=len(tokens))
    sums = np.zeros(len(starts), dtype=np.int64)
    for at in range(0, len(tokens), BLOCK_TOKENS):
        block = tokens[at : at + BLOCK_TOKENS]
        previous = np.concatenate([tokens[at - 1 : at] if at else np.array([bos], tokens.dtype), block[:-1]])
        # The documents of this block: the one that it starts in, and those that start in it.
        first = int(np.searchsorted(starts, at, side="right")) - 1
        last = int(np.searchsorted(starts, at + len(block)))
        inside = np.maximum(starts[first:last] - at, 0)
        sums[first:last] += np.add.reduceat(table.target_bytes(previous, block), inside)
    return starts, sizes, sums


def _starts(tokens: np.ndarray, bos: int) -> Iterator[np.ndarray]:
    if tokens[0] != bos:
        yield np.zeros(1, dtype=np.int64)
    for at in range(0, len(tokens), BLOCK_TOKENS):
        yield np.flatnonzero(tokens[at : at + BLOCK_TOKENS] == bos) + at


def write_index(
    path: Path,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    raw_bytes: list[int] | None = None,
    ids: list[str] | None = None,
) -> None:
    """Write the index as Parquet; the same rows give the same bytes."""
    count = len(rows[0])
    columns = [
        *(pa.array(row, type=pa.int64()) for row in rows),
        pa.array(raw_bytes if raw_bytes is not None else [None] * count, type=pa.int64()),
        pa.array(ids if ids is not None else [None] * count, type=pa.string()),
    ]
    pq.write_table(
        pa.table(columns, schema=SCHEMA),
        path,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )
