"""Sample documents, whose cost the report shows token by token."""

from __future__ import annotations

import numpy as np

from model.ledger import Excerpt
from model.stream import TokenStream

_SCAN_TOKENS = 1 << 22


def choose_excerpts(stream: TokenStream, bos: int, targets: int, documents: int = 6, limit: int = 256) -> list[Excerpt]:
    """The openings of `documents` documents, evenly spread over the first `targets` targets.

    An excerpt has at most `limit` targets and leaves out the document's BOS, which stands for no text.
    """
    starts = document_starts(stream, bos)
    starts = starts[starts + 1 < targets]
    ends = np.append(starts[1:], targets + 1)
    # Token t is target t - 1: the text after the BOS at token s is targets s .. next BOS - 2.
    candidates = [
        Excerpt(i, int(s), int(min(e - 1, s + limit, targets))) for i, (s, e) in _spread(starts, ends, documents)
    ]
    return [excerpt for excerpt in candidates if excerpt.lo < excerpt.hi]


def document_starts(stream: TokenStream, bos: int) -> np.ndarray:
    """Positions of BOS in the stream; position 0 counts as a start when there is none."""
    found = [
        begin + np.flatnonzero(stream.read(begin, min(begin + _SCAN_TOKENS, len(stream))) == bos)
        for begin in range(0, len(stream), _SCAN_TOKENS)
    ]
    starts = np.concatenate([*found, np.zeros(0, dtype=np.int64)])
    return starts if starts.size else np.zeros(1, dtype=np.int64)


def _spread(starts: np.ndarray, ends: np.ndarray, documents: int) -> list[tuple[int, tuple[int, int]]]:
    wanted = min(documents, len(starts))
    indices = sorted({(2 * k + 1) * len(starts) // (2 * wanted) for k in range(wanted)})
    return [(i, (int(starts[i]), int(ends[i]))) for i in indices]
