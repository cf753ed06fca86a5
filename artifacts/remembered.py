"""Documents of a remote store that were read before, so that looking through thousands is not thousands of calls.

A listing says which state of a file it lists: its tag (ETag or generation). A text that was read in that state is the
text, so one listing and what has changed since are all that is asked for. Two places remember:

    cache/<host>/documents.sqlite   on this host: (path, tag, text)
    index/<sha256>                  in the store, for hosts that have read nothing yet: the same (see `index.py`)

A run leaves in the index what it wrote, so that a store is listed quickly even by the first who does so. Its tags are
foreseen: they are the MD5 of the texts wherever a listing says that (see `dialects.py`), and elsewhere nobody's.

Both may be deleted at any time, and neither is believed: a text counts only with the tag of a fresh listing and with
its own digest. What cannot be kept is simply read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from artifacts.backend import Backend, Entry
from artifacts.documents import is_whole
from artifacts.index import Index

_WORTH_AN_INDEX = 200  # fewer documents are read sooner than the index
_MOST = 100_000  # rows of this host's memory; beyond it everything is forgotten
_NOTED = ("names/", "records/", "runs/")  # what there are many of
_MD5 = re.compile(r"[0-9a-f]{32}")
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Remembered:
    """What this host and the store's index remember. Its methods may be called from several threads."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self._backend = backend
        self._path = folder / "documents.sqlite"
        self._lock = threading.RLock()  # of what follows
        self._index = Index(backend)
        self._noted: dict[str, bytes] = {}  # path -> text

    def read(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """The texts of listed files, in order; None for those that are gone."""
        known = self._recall(entries)
        new = [entry for entry in entries if entry.path not in known]
        indexed = self._look_up(new) if len(new) >= _WORTH_AN_INDEX else {}
        lacking = [entry for entry in new if entry.path not in indexed]
        texts = self._backend.read_many([entry.path for entry in lacking])
        read = [(e, text) for e, text in zip(lacking, texts, strict=True) if text is not None and _is_of(e, text)]
        found = {**known, **indexed, **{entry.path: text for entry, text in zip(lacking, texts, strict=True)}}
        self._keep([*read, *((entry, indexed[entry.path]) for entry in new if entry.path in indexed)])
        if len(lacking) >= _WORTH_AN_INDEX:
            self._add(read)
        return [found[entry.path] for entry in entries]

    def note(self, path: str, text: bytes) -> None:
        """Let the next `leave_index` have this document, or its newer state."""
        if path.startswith(_NOTED):
            with self._lock:
                self._noted[path] = text

    def leave_index(self) -> None:
        """Tell other hosts, and this one later, of what was noted. One document is read as soon as an index of one."""
        with self._lock:
            noted, self._noted = self._noted, {}
        if len(noted) > 1:
            states = [(Entry(path, len(text), 0.0, _md5(text)), text) for path, text in noted.items()]
            self._keep(states)
            self._add(states)

    def _look_up(self, entries: Sequence[Entry]) -> dict[str, bytes]:
        with self._lock:
            found = self._index.look_up(entries)
        return {e.path: text for e in entries if (text := found.get(e.path)) is not None and _is_of(e, text)}

    def _add(self, states: Sequence[tuple[Entry, bytes]]) -> None:
        with self._lock:
            self._index.add({(entry.path, entry.tag): text for entry, text in states})

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
        if not read:
            return

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


def _is_of(entry: Entry, text: bytes) -> bool:
    """Whether the text is surely that of the listed state: it may have been replaced before it was read."""
    # An MD5 comes back with its text; tags of other kinds never come back.
    is_it = _md5(text) == entry.tag if _MD5.fullmatch(entry.tag) else bool(entry.tag)
    return is_it and is_whole(text)


def _md5(text: bytes) -> str:
    return hashlib.md5(text, usedforsecurity=False).hexdigest()
