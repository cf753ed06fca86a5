"""The store's JSON documents, each of which begins with the digest of its own text, so that no flipped byte passes.

    {"sha256": "<64 hex>",
     "files": [...],
     ...
    }

The digest is sha256 of the text with the first 78 bytes (`{"sha256": "<64 hex>",`) replaced by `{`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from artifacts.backend import Backend, Entry
from artifacts.errors import BadName, DamagedArtifact

_LOG = logging.getLogger(__name__)

_HEAD = b'{"sha256": "'
_HEAD_BYTES = len(_HEAD) + 64 + len(b'",')


def dump_document(document: dict[str, Any]) -> tuple[bytes, str]:
    """(text, digest) of a document. Refuses NaN and what JSON cannot say."""
    assert document, "an empty document says nothing"
    if "sha256" in document:
        raise BadName('a document\'s own digest is "sha256"; it cannot have a field of this name; rename the field')
    try:
        # Layout costs some bytes, but people read these files when something is wrong.
        text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadName(f"a document holds plain JSON values only; {error}; convert it before it gets here") from error
    body = text.encode() + b"\n"
    digest = hashlib.sha256(body).hexdigest()
    return _HEAD + digest.encode() + b'",' + body[1:], digest


def is_whole(raw: bytes) -> bool:
    """Whether no byte of a text made by `dump_document` is another."""
    return raw[:_HEAD_BYTES] == _HEAD + _digest(raw).encode() + b'",'


def _digest(raw: bytes) -> str:
    return hashlib.sha256(b"{" + raw[_HEAD_BYTES:]).hexdigest()


def load_document(raw: bytes, path: str) -> tuple[dict[str, Any], str]:
    """(document, digest) of a text made by `dump_document`; DamagedArtifact if one byte of it is another."""
    found = _digest(raw)
    if not is_whole(raw):
        expected = raw[len(_HEAD) : len(_HEAD) + 64].decode("ascii", "replace")
        raise DamagedArtifact(path, f"sha256 {expected}", f"sha256 {found}")
    document = json.loads(raw)
    del document["sha256"]
    return document, found


def read_document(backend: Backend, path: str) -> tuple[dict[str, Any], str]:
    """(document, digest) of a file; FileNotFoundError if there is none, DamagedArtifact if a byte of it is another."""
    return load_document(backend.read(path), path)


def read_if_whole(backend: Backend, path: str) -> dict[str, Any] | None:
    """The document of a file, or None, with a warning, if it is damaged: one bad file must not hide all others."""
    try:
        return _if_whole(backend.read(path), path)
    except FileNotFoundError:
        return None


def read_all_whole(backend: Backend, entries: Sequence[Entry]) -> list[dict[str, Any] | None]:
    """The same for many listed files at once, in order."""
    return [_if_whole(raw, entry.path) for raw, entry in zip(backend.read_listed(entries), entries, strict=True)]


def _if_whole(raw: bytes | None, path: str) -> dict[str, Any] | None:
    try:
        return None if raw is None else load_document(raw, path)[0]
    except DamagedArtifact as damage:
        _LOG.warning("left out: %s", damage)
        return None


def read_folder(backend: Backend, folder: str) -> list[dict[str, Any]]:
    """Every whole document below a folder, in order of path."""
    entries = [entry for entry in backend.walk(folder) if entry.path.endswith(".json")]
    return [document for document in read_all_whole(backend, entries) if document is not None]
