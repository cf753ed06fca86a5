"""File contents under the name of their digest: `objects/<aa>/<sha256>`, written once, read-only, verified before use.

Two places are involved. `backend` is the store. `host` is a folder of this machine, where bytes are hashed while they
are written and from which stages read: for a local store it is the store itself, otherwise a read-through cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Literal

from artifacts.backend import Backend, explained
from artifacts.digest import copy_hashed, hash_file
from artifacts.errors import DamagedArtifact, StoreFull, StoreUnavailable
from artifacts.local import LocalBackend
from artifacts.meter import SILENT, Meter
from artifacts.parallel import STREAMS, in_parallel
from artifacts.record import File, check_files, check_key
from artifacts.stamps import Stamps, signature

Verify = Literal["stamp", "full"]
# An object as young as this is not uploaded again; older ones are, so that a `gc` which is about to remove them sees
# them as fresh. Far below any sensible grace period of `gc`.
_FRESH_S = 3600.0
CACHE_LIMIT = "FAIRWAY_CACHE_BYTES"  # what a host's copies of a remote store's objects may take
_CACHE_BYTES = 100_000_000_000
_IN_USE_S = 24 * 3600.0  # a stage that runs longer than this on one machine is unheard of
# Hashing less than this again takes no longer than the stamp's wait for the clock tick.
_WORTH_A_STAMP_BYTES = 8 << 20

_TRIES = 5
_LOG = logging.getLogger(__name__)


def object_path(sha256: str) -> str:
    """Where an object lies in a store."""
    return f"objects/{sha256[:2]}/{sha256}"


class Objects:
    """The contents of a store, as this host sees them."""

    def __init__(self, backend: Backend, host: LocalBackend, stamps: Stamps) -> None:
        self._backend = backend
        self._host = host
        self._stamps = stamps

    @property
    def _remote(self) -> bool:
        return self._backend is not self._host

    def put(self, paths: Iterable[Path], meter: Meter = SILENT) -> list[tuple[str, int]]:
        """Store the contents of files; (sha256, bytes) of each, in order. All of it is on disk when this returns."""
        paths = list(paths)
        meter.expect(sum(path.stat().st_size for path in paths))
        put = in_parallel(lambda path: self._put_one(path, meter), paths)
        if sum(size_bytes for _, size_bytes in put) >= _WORTH_A_STAMP_BYTES:
            held = {sha256: self.held(sha256) for sha256, _ in put}
            self._stamps.write((sha256, path, signature(path)) for sha256, path in held.items())
        return put

    def read(self, sha256: str) -> bytes:
        """The bytes of a small object, hashed in full."""
        path = object_path(check_key(sha256))
        try:
            data = self._backend.read(path)
        except FileNotFoundError:
            raise DamagedArtifact(path, f"sha256 {sha256}", None, self._backend.url) from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise DamagedArtifact(path, f"sha256 {sha256}", f"sha256 {found}", self._backend.url)
        return data

    def fetch(
        self,
        files: Iterable[File],
        folder: Path,
        verify: Verify = "stamp",
        link: bool = True,
        meter: Meter = SILENT,
    ) -> None:
        """Lay verified files out under `folder`: as links to read-only objects, or as copies of the caller's own."""
        files = check_files(tuple(files))
        for _ in range(_TRIES):
            try:
                self._lay_out(files, folder, verify, link, meter)
            except StoreFull as full:
                if not self._remote or not link:
                    raise
                _LOG.warning(
                    "this host's copies have no room, so the inputs are fetched for this stage alone: %s", full
                )
                self._fetch_past_the_cache(files, folder, meter)
                return
            except FileNotFoundError:  # a copy went just before it was read
                continue
            if all((folder / file.path).exists() for file in files):
                return
        raise StoreUnavailable(
            f"a host's copies must stay while they are in use; those at {self._host.url} went {_TRIES} times; see "
            f"whether something removes them, or give more room with {CACHE_LIMIT}"
        )

    def _lay_out(self, files: tuple[File, ...], folder: Path, verify: Verify, link: bool, meter: Meter) -> None:
        self.verify(files, verify, meter)
        if self._remote:
            # Whoever makes room sees this or has removed the copy by now, which `fetch` sees.
            with self._cache_lock(fcntl.LOCK_SH):
                self._stamps.used({file.sha256 for file in files})
            self.trim(cache_limit_bytes())
        with explained(str(folder), "write", "the files"):
            _make_folders(files, folder)
            if link:
                for file in files:
                    self._link(file, folder / file.path)
            else:
                in_parallel(lambda file: self._copy(file, folder / file.path), files)

    def _fetch_past_the_cache(self, files: tuple[File, ...], folder: Path, meter: Meter) -> None:
        """Files of the caller's own, verified, and none kept on this host."""
        with explained(str(folder), "write", "the files"):
            _make_folders(files, folder)
            for file in files:
                if self._stamps.holds(file.sha256, self.held(file.sha256)):
                    self._link(file, folder / file.path)
                    continue
                (folder / file.path).unlink(missing_ok=True)
                self._take(file, folder / file.path, STREAMS, meter)

    def verify(self, files: Iterable[File], verify: Verify = "stamp", meter: Meter = SILENT) -> None:
        """See that the files' objects are on this host and right; DamagedArtifact names the first that is not."""
        by_digest = {file.sha256: file for file in files}
        if verify == "stamp":
            by_digest = {s: f for s, f in by_digest.items() if not self._stamps.holds(s, self.held(s))}
        absent = [f for f in by_digest.values() if self._remote and not self.held(f.sha256).exists()]
        meter.expect(sum(file.bytes for file in absent))
        streams = max(2, STREAMS // max(1, len(absent)))  # so that one part comes while another is hashed
        self._stamps.write(in_parallel(lambda file: self._hashed(file, streams, meter), by_digest.values()))

    def trim(self, limit_bytes: int) -> int:
        """Remove the copies that this host has not used for longest until the rest take `limit_bytes`; bytes removed.

        A stage may be reading what was used lately, so that stays, even over the limit.
        """
        held = list(self._host.walk("objects"))
        total = sum(entry.bytes for entry in held)
        if total <= limit_bytes:
            return 0
        young, removed = time.time() - _IN_USE_S, 0
        used = {entry.path: self._stamps.last_used_s(entry.path[-64:]) or entry.modified_s for entry in held}
        for entry in sorted(held, key=lambda entry: used[entry.path]):
            if total - removed <= limit_bytes or used[entry.path] > young:
                break
            with self._cache_lock(fcntl.LOCK_EX):
                if (self._stamps.last_used_s(entry.path[-64:]) or 0.0) > young:  # by another process, just now
                    continue
                removed += entry.bytes if self._host.delete(entry.path) else 0
        return removed

    @contextlib.contextmanager
    def _cache_lock(self, kind: int) -> Iterator[None]:
        """Between processes that note what they use and those that make room; none where locks cannot be had."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                lock = stack.enter_context((self._host.root / "use.lock").open("a"))
                fcntl.flock(lock, kind)
            yield

    def missing(self, files: Iterable[File]) -> list[File]:
        """Files whose objects are not in the store, or not of the right size."""
        files = list(files)
        entries = in_parallel(lambda file: self._backend.entry(object_path(file.sha256)), files)
        return [f for f, entry in zip(files, entries, strict=True) if entry is None or entry.bytes != f.bytes]

    def set_aside(self, file: File) -> DamagedArtifact | None:
        """Verify a file in full and move its object to `quarantined/` if it is damaged; what was wrong, if anything."""
        try:
            self.verify([file], "full")
        except DamagedArtifact as damage:
            if damage.found is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._backend.move(object_path(file.sha256), f"quarantined/objects/{file.sha256}")
            return damage
        return None

    def held(self, sha256: str) -> Path:
        """Where this host has an object, once it has been put, fetched or verified here."""
        return self._host.path(object_path(sha256))

    def put_stream(self, source: IO[bytes], expected: str, shown: str, meter: Meter = SILENT) -> int:
        """Store an object whose digest is known beforehand and return its bytes; DamagedArtifact if it has another."""
        return self._write(source, shown, expected, meter)[1]

    def adopt(self, file: File, path: Path, meter: Meter = SILENT) -> None:
        """Store an object from a verified file of this host, without a second copy on it where that can be avoided."""
        if self._remote:
            self._upload(path, file.sha256, file.bytes, meter)
            return
        with path.open("rb", buffering=0) as source:
            self.put_stream(source, file.sha256, file.path, meter)

    def _put_one(self, path: Path, meter: Meter) -> tuple[str, int]:
        with explained(str(path), "read", path.name), path.open("rb", buffering=0) as source:
            return self._write(source, path.name, None, meter, os.fstat(source.fileno()).st_size)

    def _write(
        self, source: IO[bytes], shown: str, expected: str | None, meter: Meter, needs_bytes: int | None = None
    ) -> tuple[str, int]:
        with explained(self._host.url, "write the contents of", shown, needs_bytes=needs_bytes):
            temporary, target = self._host.temporary()
            with self._host.discarding(temporary), target:
                sha256, size_bytes = copy_hashed(source, target)
                if expected not in (None, sha256):
                    raise DamagedArtifact(shown, f"sha256 {expected}", f"sha256 {sha256}", "", expected or "")
                os.fchmod(target.fileno(), 0o444)
                self._host.flush(target)
            # Replacing an object by equal bytes heals a damaged one and makes it young for `gc`.
            self._host.place(temporary, object_path(sha256))
        if self._remote:
            self._upload(self.held(sha256), sha256, size_bytes, meter)
        else:
            meter.add(size_bytes)
        return sha256, size_bytes

    def _upload(self, path: Path, sha256: str, size_bytes: int, meter: Meter) -> None:
        entry = self._backend.entry(object_path(sha256))
        if entry is None or entry.bytes != size_bytes or time.time() - entry.modified_s > _FRESH_S:
            self._backend.upload(path, object_path(sha256), meter)
        else:
            meter.add(size_bytes)

    def _hashed(self, file: File, streams: int, meter: Meter) -> tuple[str, Path, str]:
        """Hash an object on this host, fetched first if need be; the stamp to write, or DamagedArtifact."""
        held = self.held(file.sha256)
        with explained(self._host.url, "read", file.path, needs_bytes=file.bytes):
            before, found = "", None
            with contextlib.suppress(FileNotFoundError):
                before, found = signature(held), hash_file(held)
            if found == (file.sha256, file.bytes):
                return file.sha256, held, before
            if self._remote:
                self._download(file, held, streams, meter)
                return file.sha256, held, signature(held)
        raise _damage(file, found, self._backend.url)

    def _download(self, file: File, held: Path, streams: int, meter: Meter) -> None:
        temporary, target = self._host.temporary()
        target.close()
        with self._host.discarding(temporary):
            self._take(file, temporary, streams, meter)
            temporary.chmod(0o444)
        self._host.place(temporary, object_path(file.sha256))

    def _take(self, file: File, path: Path, streams: int, meter: Meter) -> None:
        """Copy an object from the store to a file of this host, hashed on its way; nothing is left if it is damaged."""
        at = object_path(file.sha256)
        try:
            try:
                found = self._backend.download_hashed(at, path, file.bytes, streams, meter)
            except StoreUnavailable:
                entry = self._backend.entry(at)
                if entry is None or entry.bytes == file.bytes:
                    raise
                self._backend.download(at, path)  # a cut object has no such parts
                found = hash_file(path)
        except FileNotFoundError:
            raise _damage(file, None, self._backend.url) from None
        if found != (file.sha256, file.bytes):
            path.unlink()
            raise _damage(file, found, self._backend.url)

    def _link(self, file: File, target: Path) -> None:
        target.unlink(missing_ok=True)
        target.symlink_to(self.held(file.sha256))

    def _copy(self, file: File, target: Path) -> None:
        target.unlink(missing_ok=True)
        with self.held(file.sha256).open("rb", buffering=0) as source, target.open("xb") as copy:
            found = copy_hashed(source, copy)
        if found != (file.sha256, file.bytes):
            target.unlink()
            raise _damage(file, found, self._backend.url)


def _make_folders(files: Iterable[File], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for parent in {(folder / file.path).parent for file in files}:
        parent.mkdir(parents=True, exist_ok=True)


def cache_limit_bytes() -> int:
    """The limit of this host's copies, from the environment or 100 GB."""
    asked = os.environ.get(CACHE_LIMIT, str(_CACHE_BYTES))
    if not asked.isdecimal():
        raise StoreUnavailable(f"{CACHE_LIMIT} is a number of bytes, such as 50000000000; got {asked!r}; mend it")
    return int(asked)


def _damage(file: File, found: tuple[str, int] | None, where: str) -> DamagedArtifact:
    expected = f"sha256 {file.sha256} of {file.bytes} bytes"
    shown = f"sha256 {found[0]} of {found[1]} bytes" if found else None
    return DamagedArtifact(file.path, expected, shown, where, file.sha256)
