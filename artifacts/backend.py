"""Where a store lies: the few operations that it needs of a file system, and who provides them.

Two of them carry all the safety: `create` makes a whole file only if there is none, which decides between two writers;
`write` replaces a whole file at once, so that no reader sees half of one. Paths are relative to the store, with "/".
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from artifacts.errors import StoreError, StoreFull, StoreReadOnly, StoreUnavailable
from artifacts.meter import SILENT, Meter
from artifacts.safety import redact_text, refuse_credentials

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Entry:
    """A file in a listing."""

    path: str
    bytes: int
    modified_s: float  # seconds since 1970, by the clock of the file system
    tag: str = ""  # which state of the file this is, where the place says so: an ETag or a generation


class Backend(Protocol):
    """A place for files. Missing files raise FileNotFoundError; whatever else goes wrong raises StoreUnavailable."""

    url: str

    def read(self, path: str) -> bytes:
        """The whole file."""
        ...

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Whole small files, in order; None for those that are not there."""
        ...

    def read_listed(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """The same for documents of a listing just made, some of which may be remembered (see `remembered.py`)."""
        ...

    def remember(self, folder: Path) -> None:
        """Keep documents that were read in this folder of the host, if that saves anything."""
        ...

    def note(self, path: str, text: bytes) -> None:
        """Let the index that is left have a document that another process wrote; one written here is noted anyway."""
        ...

    def leave_index(self) -> None:
        """Let hosts that list the store for the first time read what was noted at once, if that saves anything."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Make or replace the whole file at once; on disk when this returns."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Make the whole file if there is none, at once; False if there is one."""
        ...

    def walk(self, folder: str, prefix: str = "") -> Iterator[Entry]:
        """Every file below `folder` in order of path; `prefix` is how the name of the folder's entries begins."""
        ...

    def delete(self, path: str) -> bool:
        """Remove the file; False if there is none."""
        ...

    def entry(self, path: str) -> Entry | None:
        """The file's size and age, or None if there is none."""
        ...

    def move(self, source: str, target: str) -> None:
        """Give the file another name, replacing what has it."""
        ...

    def upload(self, local: Path, path: str, meter: Meter = SILENT) -> None:
        """Make or replace the file from one of this host's, at once."""
        ...

    def download(self, path: str, local: Path) -> None:
        """Copy the file to a new one of this host's, which may be left half written by a crash."""
        ...

    def download_hashed(self, path: str, local: Path, size_bytes: int, streams: int, meter: Meter) -> tuple[str, int]:
        """The same for a file of known size, `streams` parts at once; (sha256, bytes) of what came."""
        ...


def open_backend(url: str | Path, proven: bool = False) -> Backend:
    """The backend of an address: a path, `file://`, or anything that fsspec knows.

    `proven`: another machine has used the address, so that a store that does not answer is away and not mistyped.
    """
    text = refuse_credentials(str(url))
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[0].lower() in ("file", "local"):
        from artifacts.local import LocalBackend

        return LocalBackend(Path(text if scheme is None else text.split("://", 1)[1]))
    # fsspec costs 75 ms to import, which `plan` on a local store need not pay.
    from artifacts.remote import FsspecBackend

    return FsspecBackend(text, proven)


@contextmanager
def explained(
    url: str, doing: str, path: str, hide: Callable[[str], str] = redact_text, *, needs_bytes: int | None = None
) -> Iterator[None]:
    """Turn the operating system's and a driver's errors into the store's, with what to do; missing files stay as is.

    `needs_bytes` is what the doing needs of the disk, where that is known beforehand.
    """
    try:
        yield
    except (StoreError, FileNotFoundError):
        raise
    except OSError as error:
        place, cause = redact_text(url), hide(f"{type(error).__name__}: {error}")
        said = f"the store {place} must let us {doing} {path}; got {cause}"
        if error.errno in NO_ROOM:
            said = f"{said}{room(url, needs_bytes)}"
            raise StoreFull(f"{said}; make room (`fairway artifacts gc`) or choose another store") from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise StoreReadOnly(f"{said}; make it writable or choose another store with --store") from error
        raise StoreUnavailable(f"{said}; see whether it is reachable and healthy") from error


@contextmanager
def room_for(local: Path) -> Iterator[None]:
    """A file of this host is written during the block: its disk may be full while the store is well."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StoreFull(
            f"what is read from a store needs room on this host, {host_name()}; {local.parent} has none"
            f"{room(local.parent)}; make room there, or put the cache elsewhere (XDG_CACHE_HOME)"
        ) from error


def room(folder: str | Path, needs_bytes: int | None = None) -> str:
    """What a full disk has and what was to go there, as the end of a sentence; "" where nobody can say."""
    needs = "" if needs_bytes is None else f"; {needs_bytes:,} bytes were to go there"
    try:
        there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
        usage = shutil.disk_usage(there)
    except (OSError, StopIteration):
        return needs
    return f"{needs}; of {usage.total:,} bytes of the disk of {there}, {usage.free:,} are free"


def host_name() -> str:
    """This host's name, made safe for a path."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename) or "host"
