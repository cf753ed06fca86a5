"""The store's index, `index/<sha256>`: the texts of many documents in one file, for hosts that have read none of them.

A file is zlib of JSON [[path, tag, text], ...], named by the digest of its bytes, written at once and never changed, so
that writers need nothing of each other, and of the place no condition. Runs leave one at their end, of what they wrote,
and hosts that had to read much, of what they read. Whoever leaves one and finds many makes them one, and so does `gc`:
it writes what they hold before it removes them, so that one who is killed in between leaves a file too many and no
text too few. Two who do so at once leave two files at worst.

No file is needed and none is believed: a text counts only with the tag that a fresh listing gives its path, and with
its own digest (see `remembered.py`). So the folder may be deleted at any time, and no error here is worth telling.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from artifacts.backend import Backend, Entry
from artifacts.errors import StoreError
from artifacts.parallel import in_parallel

FOLDER = "index"
_MANY = 128  # files, which a new host reads in two or three round trips
_LISTINGS = 3  # during which others may make the files one, before the documents themselves are read
_STREAMS = 16  # files that are removed at once
_LOG = logging.getLogger(__name__)

State = tuple[str, str]  # (path, tag) of a document


class Index:
    """What a store's index holds, as far as it was read. For one thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._texts: dict[State, bytes] = {}
        self._files: set[str] = set()  # those that were read

    def look_up(self, entries: Iterable[Entry]) -> dict[str, bytes]:
        """What the index has of listed documents: {path: text}. Files that were read before are not read again."""
        for _ in range(_LISTINGS):
            if self.read(self._list()):
                break
        found = ((entry.path, self._texts.get((entry.path, entry.tag))) for entry in entries)
        return {path: text for path, text in found if text is not None}

    def read(self, files: Sequence[str]) -> bool:
        """Take in files of the index; whether all of them were still there."""
        new = [path for path in files if path not in self._files]
        raws: list[bytes | None] = []
        with self._optional("read"):
            raws = self._backend.read_many(new)
        for path, raw in zip(new, raws, strict=False):
            if raw is not None:
                self._files.add(path)
                self._texts |= self._unpacked(path, raw)
        return None not in raws

    def add(self, texts: Mapping[State, bytes]) -> None:
        """Leave a file with these, and one instead of many."""
        if texts and self._write(texts):
            files = self._list()
            if len(files) > _MANY and self.read(files):
                self.merge()

    def merge(self, current: Container[State] | None = None) -> None:
        """Make the files that were read one, with those of their texts that are `current`; None: with all."""
        self._texts = {state: text for state, text in self._texts.items() if current is None or state in current}
        one = self._write(self._texts) if self._texts else ""
        if one is not None:
            former, self._files = self._files - {one}, self._files & {one}
            with self._optional("cleared up"):
                in_parallel(self._backend.delete, sorted(former), _STREAMS)

    def _list(self) -> list[str]:
        with self._optional("listed"):
            return [entry.path for entry in self._backend.walk(FOLDER)]
        return []

    def _write(self, texts: Mapping[State, bytes]) -> str | None:
        """The file that has these from now on; None if there can be none."""
        raw = zlib.compress(json.dumps([[*state, texts[state].decode()] for state in sorted(texts)]).encode(), 1)
        path = f"{FOLDER}/{hashlib.sha256(raw).hexdigest()}"
        with self._optional("written"):
            if path not in self._files:
                self._backend.write(path, raw)
            self._files.add(path)
            self._texts |= texts
            return path
        return None

    def _unpacked(self, path: str, raw: bytes) -> dict[State, bytes]:
        try:
            return {(str(of), str(tag)): str(text).encode() for of, tag, text in json.loads(zlib.decompress(raw))}
        except (zlib.error, ValueError, TypeError) as error:
            _LOG.debug("%s of %s is damaged and not used: %s", path, self._backend.url, error)
            return {}

    @contextmanager
    def _optional(self, done: str) -> Iterator[None]:
        """Who may only read, or has lost the store for the moment, goes on without."""
        try:
            yield
        except StoreError as error:
            _LOG.debug("the index of %s is not %s: %s", self._backend.url, done, error)
