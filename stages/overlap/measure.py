"""How much of val stands in train: whole documents exactly, shingles as a rate. Memory is bounded by val's sample.

Both sides are read once and in blocks: 62 million tokens of val against 10 billion of train need two hundred megabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.overlap.documents import Documents
from stages.shingles import Sample, Shingles, chosen

BLOCK_TOKENS = 1 << 20
EXAMPLES = 20


@dataclass(frozen=True)
class Val:
    """What is looked for."""

    documents: tuple[bytes, ...]  # digests in the stream's order
    tokens: tuple[int, ...]  # of each document
    sample: Sample


def read_val(shards: Sequence[np.ndarray], bos: int, width: int, max_samples: int) -> Val:
    """Digests of all documents, and the sample of shingles: as many as there are, or 1 in 2^k of them."""
    documents, shingles = Documents(bos), Shingles(width, bos, BLOCK_TOKENS)
    digests: list[bytes] = []
    sizes: list[int] = []
    kept, total, one_in = np.empty(0, dtype=np.uint64), 0, 1
    for block in blocks(shards):
        for document in documents.feed(block):
            digests.append(document.digest)
            sizes.append(document.tokens)
        hashes = shingles.feed(block)
        total += len(hashes)
        kept = np.concatenate([kept, chosen(hashes, one_in)])
        while len(kept) > max_samples:
            one_in *= 2
            kept = chosen(kept, one_in)
    for document in documents.end():
        digests.append(document.digest)
        sizes.append(document.tokens)
    return Val(tuple(digests), tuple(sizes), Sample(kept, total, one_in))


def measure(
    val: Val, train: Sequence[np.ndarray], bos: int, width: int, report: Callable[[int], None] = lambda tokens: None
) -> dict[str, Any]:
    """overlap.json: counts of both sides and what of val was found. `report` hears the train tokens read so far."""
    wanted = set(val.documents)
    documents, shingles = Documents(bos), Shingles(width, bos, BLOCK_TOKENS)
    found: Counter[bytes] = Counter()
    train_documents = train_tokens = 0
    for block in blocks(train):
        ended = [document.digest for document in documents.feed(block)]
        found.update(digest for digest in ended if digest in wanted)
        train_documents += len(ended)
        val.sample.look_up(shingles.feed(block))
        train_tokens += len(block)
        report(train_tokens)
    ended = [document.digest for document in documents.end()]
    found.update(digest for digest in ended if digest in wanted)
    train_documents += len(ended)
    return {
        "train": {"documents": train_documents, "tokens": train_tokens},
        "documents": _documents(val, found),
        "shingles": {
            "tokens": width,
            "val": val.sample.total,
            "one_in": val.sample.one_in,
            "sampled": val.sample.places,
            "found": val.sample.found,
            "rate": val.sample.found / val.sample.places if val.sample.places else 0.0,
        },
    }


def _documents(val: Val, found: Counter[bytes]) -> dict[str, Any]:
    hit = [index for index, digest in enumerate(val.documents) if digest in found]
    return {
        "val": len(val.documents),
        "val_tokens": sum(val.tokens),
        "found": len(hit),
        "found_tokens": sum(val.tokens[index] for index in hit),
        "examples": [
            {"document": i, "tokens": val.tokens[i], "times_in_train": found[val.documents[i]]} for i in hit[:EXAMPLES]
        ],
    }


def blocks(shards: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The shards end to end, in pieces that fit into memory. The borders of shards and pieces mean nothing."""
    for shard in shards:
        for begin in range(0, len(shard), BLOCK_TOKENS):
            yield shard[begin : begin + BLOCK_TOKENS]
