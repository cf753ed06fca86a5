"""A store in a folder. Every file is made under `tmp/` of the same file system, flushed, and then given its name.

`os.link` is the create-if-absent: it fails if the name is taken, on every POSIX file system, and the name appears with
all of its bytes. `os.replace` is the whole-file write. After both, the folder is flushed, so that what a caller was
told to exist still does after a power cut.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from artifacts.backend import Entry, explained
from artifacts.digest import copy_hashed
from artifacts.errors import StoreUnavailable
from artifacts.meter import SILENT, Meter

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


class LocalBackend:
    """Files below one folder, which is made on the first write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root.expanduser()))
        self.url = str(self.root)

    def path(self, path: str) -> Path:
        """Where a file of the store lies on this host."""
        return self.root / path

    def read(self, path: str) -> bytes:
        """The whole file."""
        with explained(self.url, "read", path), open(self.root / path, "rb", buffering=0) as source:
            return source.read()

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Whole small files, in order; None for those that are not there."""
        found: list[bytes | None] = []
        for path in paths:
            try:
                found.append(self.read(path))
            except FileNotFoundError:
                found.append(None)
        return found

    def read_listed(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """The same for documents of a listing just made."""
        return self.read_many([entry.path for entry in entries])

    def remember(self, folder: Path) -> None:
        """Nothing: reading is as fast as remembering."""

    def note(self, path: str, text: bytes) -> None:
        """Nothing, and no index is left either."""

    def leave_index(self) -> None:
        """Nothing."""

    def write(self, path: str, data: bytes) -> None:
        """Make or replace the whole file at once; on disk when this returns."""
        with explained(self.url, "write", path):
            self.place(self._temporary_with(data), path)

    def create(self, path: str, data: bytes) -> bool:
        """Make the whole file if there is none, at once; False if there is one."""
        with explained(self.url, "create", path):
            temporary = self._temporary_with(data)
            try:
                self._into_folder(os.link, temporary, self.root / path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise StoreUnavailable(
                    f"a store needs hard links to make a file only once; the file system of {self.url} has none "
                    f"({error.strerror}); choose a store on another file system with --store"
                ) from error
            finally:
                os.unlink(temporary)
        return True

    def walk(self, folder: str, prefix: str = "") -> Iterator[Entry]:
        """Every file below `folder` in order of path; `prefix` is how the name of the folder's entries begins."""
        with explained(self.url, "list", folder):
            try:
                found = sorted(os.scandir(self.root / folder), key=lambda item: item.name)
            except (FileNotFoundError, NotADirectoryError):
                return
        for item in found:
            if not item.name.startswith(prefix):
                continue
            path = f"{folder}/{item.name}" if folder else item.name
            if item.is_dir(follow_symlinks=False):
                yield from self.walk(path)
                continue
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:  # removed since the folder was read
                continue
            yield Entry(path, status.st_size, status.st_mtime)

    def delete(self, path: str) -> bool:
        """Remove the file; False if there is none."""
        with explained(self.url, "delete", path):
            try:
                os.unlink(self.root / path)
            except FileNotFoundError:
                return False
        return True

    def entry(self, path: str) -> Entry | None:
        """The file's size and age, or None if there is none."""
        with explained(self.url, "look at", path):
            try:
                status = os.stat(self.root / path)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Entry(path, status.st_size, status.st_mtime)

    def move(self, source: str, target: str) -> None:
        """Give the file another name, replacing what has it."""
        with explained(self.url, "move", source):
            self._into_folder(os.replace, self.root / source, self.root / target)

    def upload(self, local: Path, path: str, meter: Meter = SILENT) -> None:
        """Make or replace the file from one of this host's, at once."""
        with explained(self.url, "write", path):
            temporary, target = self.temporary()
            with self.discarding(temporary), target, local.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
                self.flush(target)
            self.place(temporary, path)
        meter.add((self.root / path).stat().st_size)

    def download(self, path: str, local: Path) -> None:
        """Copy the file to a new one of this host's, which may be left half written by a crash."""
        with explained(self.url, "read", path):
            shutil.copyfile(self.root / path, local)

    def download_hashed(self, path: str, local: Path, size_bytes: int, streams: int, meter: Meter) -> tuple[str, int]:
        """The same for a file of known size; (sha256, bytes) of what came."""
        with explained(self.url, "read", path), open(self.root / path, "rb") as source, local.open("wb") as target:
            found = copy_hashed(source, target)
        meter.add(found[1])
        return found

    def temporary(self) -> tuple[Path, IO[bytes]]:
        """A new empty file on the store's file system, open for writing."""
        folder = self.root / "tmp"
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            return path, open(path, "xb")
        except FileNotFoundError:
            self._make_folder(folder)
            return path, open(path, "xb")

    def place(self, temporary: Path, path: str) -> None:
        """Give a flushed temporary file its name in the store, replacing what has it."""
        with self.discarding(temporary):
            self._into_folder(os.replace, temporary, self.root / path)

    def flush(self, target: IO[bytes]) -> None:
        """Wait until the file's bytes are on disk."""
        target.flush()
        os.fsync(target.fileno())

    @contextmanager
    def discarding(self, temporary: Path) -> Iterator[None]:
        """Remove the temporary file if the block fails, so that a full disk is not filled further."""
        try:
            yield
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _temporary_with(self, data: bytes) -> Path:
        temporary, target = self.temporary()
        with self.discarding(temporary), target:
            target.write(data)
            self.flush(target)
        return temporary

    def _into_folder(self, put: Callable[[Path, Path], Any], source: Path, target: Path) -> None:
        """`os.link` or `os.replace`, then flush the folder: only that makes the name outlive a power cut."""
        try:
            put(source, target)
        except FileNotFoundError:
            self._make_folder(target.parent)
            put(source, target)
        _flush_folder(target.parent)

    def _make_folder(self, folder: Path) -> None:
        missing = [folder, *folder.parents]
        missing = missing[: next(i for i, parent in enumerate(missing) if parent.is_dir())]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            _flush_folder(made.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
