"""Digests: of bytes while they are copied, of files, and of JSON values in one canonical text."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import IO, Any

from artifacts.errors import BadName

CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted names, no blanks, ASCII, equal numbers written equally (1.0 is 1).

    Refuses NaN and what JSON cannot say.
    """
    try:
        return json.dumps(
            _whole_floats_as_ints(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise BadName(f"only plain JSON values have a digest; {error}; convert it before it gets here") from error


def _whole_floats_as_ints(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_whole_floats_as_ints(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _whole_floats_as_ints(inner) for name, inner in value.items()}
    return value


def digest_json(value: Any) -> str:
    """sha256 of the canonical text: how a key is made from its components."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> tuple[str, int]:
    """(sha256, bytes) of a file, read in chunks."""
    with path.open("rb", buffering=0) as source:
        return copy_hashed(source, None)


def copy_hashed(source: IO[bytes], target: IO[bytes] | None) -> tuple[str, int]:
    """Copy `source` to `target` (None: nowhere) and return (sha256, bytes) of what passed."""
    digest = hashlib.sha256()
    total_bytes = 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        total_bytes += len(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest(), total_bytes
