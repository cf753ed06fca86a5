"""Documents -> token ids, in batches that keep their order whatever the number of threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece

from stages.contract import StageError


@dataclass(frozen=True)
class Batch:
    """The documents of one row group."""

    tokens: np.ndarray  # uint16 [N]: BOS and ids of every document, one after the other
    ids: list[str]
    raw_bytes: list[int]  # UTF-8 bytes of each document before the tokenizer normalised it


def encode(
    path: Path, pieces: sentencepiece.SentencePieceProcessor, workers: int, tell: Callable[[int, int], None]
) -> Iterator[Batch]:
    """Batches of the Parquet shard at `path`, encoded by `workers` threads; `tell(done, total)` counts its documents.

    At most `workers` + 1 row groups are in memory. SentencePiece lets go of the interpreter's lock while it encodes.
    """
    with pq.ParquetFile(path) as shard, ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Batch]] = deque()
        done = 0
        for group in range(shard.num_row_groups + workers):
            if group < shard.num_row_groups:
                columns = shard.read_row_group(group, columns=["id", "text"], use_threads=False)
                waiting.append(pool.submit(_batch, pieces, columns))
            if group >= workers and waiting:
                batch = waiting.popleft().result()
                done += len(batch.ids)
                tell(done, shard.metadata.num_rows)
                yield batch


def _batch(pieces: sentencepiece.SentencePieceProcessor, columns: pa.Table) -> Batch:
    texts: list[str] = columns.column("text").to_pylist()
    tokens = _stream(pieces.encode(texts, out_type=int, num_threads=1), pieces.bos_id())
    return Batch(tokens, columns.column("id").to_pylist(), [len(text.encode()) for text in texts])


def _stream(encoded: list[list[int]], bos: int) -> np.ndarray:
    """uint16 [N]: each document's ids behind a BOS; no EOS, as in the challenge's export."""
    count = sum(map(len, encoded)) + len(encoded)
    return np.fromiter(chain.from_iterable(chain((bos,), ids) for ids in encoded), dtype=np.uint16, count=count)


def load_pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer of a `vocabulary` folder. Raises StageError for one that shards cannot hold."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    if pieces.vocab_size() > 65_536 or pieces.bos_id() < 0:
        raise StageError(
            f"token shards hold ids below 65536 and start documents with BOS; the tokenizer has {pieces.vocab_size()} "
            f"pieces and BOS id {pieces.bos_id()}; use another one"
        )
    return pieces
