"""Which data a score is of: scores of different validation data say nothing about each other.

The published validation set is known by its size, whatever the tokenizer. Other data are the same if the documents are,
when all of them are scored; of a part, if the tokens and their number are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artifacts.record import Record
from artifacts.store import Store
from configs.load import challenge

# Denominators of one text differ by the tail that is left out and by the tokenizer's normaliser: 6,000 of 151 million.
SAME_TEXT = 1e-4
PUBLISHED = "published validation set"


def same_size(a_bytes: int, b_bytes: int) -> bool:
    """Whether two denominators can be of one text."""
    return abs(a_bytes - b_bytes) <= SAME_TEXT * max(a_bytes, b_bytes)


def validation(
    store: Store, steps: Mapping[str, str], recipe: Mapping[str, Any], protocol: str, text_bytes: int
) -> str:
    """A name of the data: equal names, equal data.

    Args:
        store: where the records are.
        steps: label -> key of a run's steps.
        recipe: resolved.
        protocol: whose score.
        text_bytes: the score's denominator.
    """
    if any(same_size(text_bytes, known["bytes"]) for known in challenge()["validation"].values()):
        return PUBLISHED
    most = recipe.get("evaluate", {}).get(protocol, {}).get("max_targets", 0)
    corpus = None if most else _record(store, "corpus", steps.get("corpus"))
    if corpus is not None:
        return f"documents {corpus.role_digest('val')[:12]}"
    scored = _record(store, "evaluate", steps.get(f"evaluate[{protocol}]"))
    if scored is not None and scored.inputs.get("val"):
        return f"tokens {scored.inputs['val']['digest'][:12]}{f', first {most:,}' if most else ''}"
    return f"unknown, {text_bytes:,} bytes"


def _record(store: Store, stage: str, key: str | None) -> Record | None:
    """A record, one that was rejected too: what it read is no less true."""
    if key is None:
        return None
    found = store.get(stage, key)
    if found is None:
        found = next((r for r, _ in store.rejected() if (r.stage, r.key) == (stage, key)), None)
    return found
