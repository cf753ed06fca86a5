"""A store behind fsspec: object stores and memory. Only those whose create-if-absent is one atomic request.

| scheme | create-if-absent | proven by |
|---|---|---|
| s3, s3a | PutObject with `If-None-Match: *` | tests against a local S3 server |
| memory | a lock of this process | tests |
| gs, gcs | `ifGenerationMatch=0` (gcsfs 2026.10) | reading the driver; never run |
| az, abfs, abfss | `upload_blob(overwrite=False)` (adlfs 2026.8) | reading the driver; never run |

fsspec's own default for `mode="create"` looks first and writes then, which decides nothing between two writers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from artifacts.backend import Entry, explained
from artifacts.errors import StoreError, StoreUnavailable

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_SCHEMES = ("memory", *_EXTRAS)
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
_MEMORY = threading.Lock()
_BUSY_TRIES = 20


class FsspecBackend:
    """Files below one URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = url.split("://", 1)[0].lower()
        if scheme not in _SCHEMES:
            raise StoreUnavailable(
                f"a store needs a file system that makes a file only if there is none, in one step: a local path, "
                f"{', '.join(_SCHEMES)}; got {scheme}://; keep the store on one of these"
            )
        try:
            # Cached listings would hide what other machines write.
            self._fs, root = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise StoreUnavailable(
                f"{scheme}:// needs its driver ({error}); install it: pip install 'fairway[{_EXTRAS[scheme]}]'"
            ) from error
        self._root = str(root).rstrip("/")
        self._in_memory = scheme == "memory"

    def read(self, path: str) -> bytes:
        """The whole file."""
        with self._explained("read", path):
            return self._fs.cat_file(self._at(path))

    def write(self, path: str, data: bytes) -> None:
        """Make or replace the whole file at once."""
        with self._writing("write", path):
            self._fs.pipe_file(self._at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Make the whole file if there is none, at once; False if there is one."""
        with self._writing("create", path):
            for attempt in range(_BUSY_TRIES):
                try:
                    if self._in_memory:
                        with _MEMORY:
                            self._fs.pipe_file(self._at(path), data, mode="create")
                    else:
                        self._fs.pipe_file(self._at(path), data, mode="create")
                except FileExistsError:
                    return False
                except OSError as error:
                    code = _s3_code(error)
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if code not in ("ConditionalRequestConflict", "409"):
                        raise
                    time.sleep(0.05 * (attempt + 1))  # another writer is in the middle of the same creation
                else:
                    return True
            raise StoreUnavailable(f"two writers of {path} at {self.url} kept each other out; try again")

    def walk(self, folder: str, prefix: str = "") -> Iterator[Entry]:
        """Every file below `folder` in order of path; `prefix` is how the name of the folder's entries begins."""
        at = self._at(folder)
        options = {} if self._in_memory else {"prefix": prefix}
        found: dict[str, dict[str, Any]] = {}
        with self._explained("list", folder), suppress(FileNotFoundError):
            found = self._fs.find(at, detail=True, **options)
        skip = len(self._root) + 1
        for full, info in sorted(found.items()):
            path = full[skip:]
            if path.startswith(f"{folder}/{prefix}" if folder else prefix):
                yield Entry(path, info["size"], _modified_s(info))

    def delete(self, path: str) -> bool:
        """Remove the file; False if there is none."""
        if self.entry(path) is None:
            return False
        with self._writing("delete", path):
            self._fs.rm_file(self._at(path))
        return True

    def entry(self, path: str) -> Entry | None:
        """The file's size and age, or None if there is none."""
        with self._explained("look at", path):
            try:
                info = self._fs.info(self._at(path))
            except FileNotFoundError:
                return None
        return Entry(path, info["size"], _modified_s(info)) if info["type"] == "file" else None

    def move(self, source: str, target: str) -> None:
        """Copy the file to another name, then remove the old one."""
        with self._explained("move", source):
            self._fs.cp_file(self._at(source), self._at(target))
            self._fs.rm_file(self._at(source))

    def upload(self, local: Path, path: str) -> None:
        """Make or replace the file from one of this host's, at once."""
        if self._in_memory:  # its files would be seen while they grow
            self.write(path, local.read_bytes())
            return
        with self._writing("write", path):
            self._fs.put_file(str(local), self._at(path))

    def download(self, path: str, local: Path) -> None:
        """Copy the file to a new one of this host's, which may be left half written by a crash."""
        with self._explained("read", path):
            self._fs.get_file(self._at(path), str(local))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @contextmanager
    def _writing(self, doing: str, path: str) -> Iterator[None]:
        """Nothing has to be there before a write but the bucket itself."""
        try:
            with self._explained(doing, path):
                yield
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"a store's bucket or container must exist; {self.url} cannot {doing} {path} ({error}); create it first"
            ) from error

    @contextmanager
    def _explained(self, doing: str, path: str) -> Iterator[None]:
        try:
            with explained(self.url, doing, path):
                yield
        except (StoreError, FileNotFoundError):
            raise
        except Exception as error:  # drivers raise their own kinds: no credentials, no route, no such endpoint
            raise StoreUnavailable(
                f"the store {self.url} must let us {doing} {path}; got {type(error).__name__}: {error}; "
                "see whether the address, the credentials and the network are right"
            ) from error


def _s3_code(error: OSError) -> str:
    """The server's own error code: not every S3 server says which condition failed, as s3fs expects."""
    response: Any = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code", "")) if isinstance(response, dict) else ""


def _modified_s(info: dict[str, Any]) -> float:
    """Seconds since 1970 of a listing's time, whatever the driver calls it."""
    value = next((info[name] for name in _TIMES if info.get(name) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)
