"""Documents of a remote store that were read before, so that looking through thousands is not thousands of calls.

A listing says which state of a file it lists: its tag (ETag or generation). A text that was read in that state is the
text, so one listing and what has changed since are all that is asked for. Two places remember:

    cache/<host>/documents.sqlite   on this host: (path, tag, text)
    index/documents                 in the store, for hosts that have read nothing yet: the same, compressed

Both may be deleted at any time, and neither is believed: a text counts only with the tag of a fresh listing and with
its own digest. What cannot be kept is simply read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from artifacts.backend import Backend, Entry
from artifacts.documents import is_whole
from artifacts.errors import StoreError

INDEX = "index/documents"
_WORTH_AN_INDEX = 200  # fewer documents are read sooner than the index
_MOST = 100_000  # rows of this host's memory; beyond it everything is forgotten
_MD5 = re.compile(r"[0-9a-f]{32}")
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Remembered:
    """What this host and the store's index remember."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self._backend = backend
        self._path = folder / "documents.sqlite"
        self._index: dict[str, tuple[str, str]] | None = None  # path -> (tag, text)

    def read(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """The texts of listed files, in order; None for those that are gone."""
        known = self._recall(entries)
        new = [entry for entry in entries if entry.path not in known]
        if len(new) >= _WORTH_AN_INDEX:
            known |= self._look_up(new)
        lacking = [entry for entry in new if entry.path not in known]
        texts = self._backend.read_many([entry.path for entry in lacking])
        found = {**known, **{entry.path: text for entry, text in zip(lacking, texts, strict=True)}}
        fresh = [(entry, text) for entry in new if (text := found[entry.path]) and _may_be_kept(entry, text)]
        if fresh:
            self._keep(fresh)
        if len(lacking) >= _WORTH_AN_INDEX:
            self._publish(fresh)
        return [found[entry.path] for entry in entries]

    def _recall(self, entries: Sequence[Entry]) -> dict[str, bytes]:
        if not self._path.exists():
            return {}

        def select(database: sqlite3.Connection) -> dict[str, bytes]:
            query = "SELECT text FROM documents WHERE path = ? AND tag = ?"
            database.text_factory = bytes
            rows = ((entry.path, database.execute(query, (entry.path, entry.tag)).fetchone()) for entry in entries)
            return {path: row[0] for path, row in rows if row is not None and is_whole(row[0])}

        return self._with_database(select) or {}

    def _keep(self, read: Sequence[tuple[Entry, bytes]]) -> None:
        def insert(database: sqlite3.Connection) -> None:
            database.execute("CREATE TABLE IF NOT EXISTS documents(path TEXT PRIMARY KEY, tag TEXT, text BLOB)")
            if database.execute("SELECT count(*) FROM documents").fetchone()[0] > _MOST:
                database.execute("DELETE FROM documents")
            rows = [(entry.path, entry.tag, text) for entry, text in read]
            database.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", rows)

        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._with_database(insert)

    def _with_database(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
        """`work` in one transaction of this host's memory; None if that cannot be had, and then all is read again."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=2.0)) as database, database:
                return work(database)
        except sqlite3.OperationalError as error:  # in use for long, full, read-only
            _LOG.debug("documents are not remembered: %s", error)
        except sqlite3.DatabaseError as error:
            _LOG.warning("what was remembered of %s is damaged and forgotten: %s", self._backend.url, error)
            with contextlib.suppress(OSError):
                self._path.unlink()
        return None

    def _look_up(self, entries: Sequence[Entry]) -> dict[str, bytes]:
        """What the store's own index has of these."""
        if self._index is None:
            self._index = {}
            try:
                found = json.loads(zlib.decompress(self._backend.read(INDEX)))
                self._index = {str(path): (str(tag), str(text)) for path, (tag, text) in found.items()}
            except FileNotFoundError:
                pass
            except (StoreError, zlib.error, ValueError, AttributeError, TypeError) as error:
                _LOG.debug("the index of %s is not used: %s", self._backend.url, error)
        known = ((entry.path, self._index.get(entry.path), entry.tag) for entry in entries)
        found = {path: has[1].encode() for path, has, tag in known if tag and has is not None and has[0] == tag}
        return {path: text for path, text in found.items() if is_whole(text)}

    def _publish(self, read: Sequence[tuple[Entry, bytes]]) -> None:
        """Tell other hosts; two who do so at once leave one index, and what it lacks is read."""
        new = {entry.path: (entry.tag, text.decode()) for entry, text in read}
        self._index = {**(self._index or {}), **new}
        if len(self._index) > _MOST:
            self._index = new
        try:
            self._backend.write(INDEX, zlib.compress(json.dumps(self._index).encode(), 1))
        except StoreError as error:  # who may only read reads on
            _LOG.debug("the index of %s is not written: %s", self._backend.url, error)


def _may_be_kept(entry: Entry, text: bytes) -> bool:
    """Whether the text is surely that of the listed state: it may have been replaced before it was read."""
    tag = entry.tag
    # Many an S3 server's tag is the text's MD5 and comes back with the text; others' tags never come back.
    is_it = hashlib.md5(text, usedforsecurity=False).hexdigest() == tag if _MD5.fullmatch(tag) else bool(tag)
    return is_it and is_whole(text)
