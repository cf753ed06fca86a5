"""Opening what training reads, and telling one data set from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from model.batches import Spans, TrainStream
from model.bytes import ByteTable
from stages.contract import StageError
from stages.train.validation import Validation

if TYPE_CHECKING:
    from stages.train.config import Config

SAMPLED_BLOCKS = 16  # of 4 KiB per file: enough to tell data sets apart without reading them all


def open_data(config: Config, inputs: Mapping[str, Path], rank: int, world: int) -> tuple[Spans, Validation | None]:
    """This rank's training spans, and the held-out rows if any. Raises StageError for data that cannot be used."""
    shards = sorted(inputs["shards"].glob("*.bin"))
    if not shards:
        raise StageError("training needs at least one token shard (*.bin); none came; look at the report of tokenize")
    try:
        table = ByteTable.load(inputs["tokenizer"] / "bytes.npy")
        stream = TrainStream(shards, config.network.vocab, held_out=config.validation_tokens)
        spans = Spans(
            stream=stream,
            sequence_tokens=config.sequence_tokens,
            microbatch_tokens=config.microbatch_tokens,
            batch_tokens=config.batch_tokens,
            rank=rank,
            world=world,
        )
        if table.vocab > config.network.vocab:
            raise ValueError(
                f"the network has a row for every token; the tokenizer has {table.vocab} ids, train.network.vocab is "
                f"{config.network.vocab}; make them equal"
            )
        if not config.validation_tokens:
            return spans, None
        rows = config.microbatch_tokens // config.sequence_tokens
        return spans, Validation(stream.held_out(), config.sequence_tokens, rows, table)
    except ValueError as error:
        raise StageError(str(error)) from error


def fingerprint(inputs: Mapping[str, Path]) -> dict[str, str]:
    """A digest per input file, from its size and some of its blocks."""
    files = {f"{role}/{path.name}": path for role in inputs for path in inputs[role].iterdir()}
    return {name: _sample(path) for name, path in files.items()}


def _sample(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for block in range(SAMPLED_BLOCKS):
            file.seek(max(size - 4096, 0) * block // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(4096))
    return digest.hexdigest()
