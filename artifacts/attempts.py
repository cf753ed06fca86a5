"""Attempts: a running stage's checkpoints, mirrored so that any machine can go on from the last one.

    attempts/<key>/<sha256>        the content of one checkpoint file
    attempts/<key>/manifest.json   which files make up the folder, replaced last and at once

A half mirrored folder is never restored: the manifest still names the contents of the one before, which are removed
only after it has been replaced.
"""

from __future__ import annotations

import logging
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

from artifacts.backend import Backend, explained, host_name
from artifacts.digest import copy_hashed, hash_file
from artifacts.documents import dump_document, read_if_whole
from artifacts.errors import DamagedArtifact
from artifacts.local import LocalBackend
from artifacts.record import File, check_files, check_key
from artifacts.stamps import signature

_LOG = logging.getLogger(__name__)
_TRIES = 3


class Attempts:
    """The attempts of a store."""

    def __init__(self, backend: Backend, host: LocalBackend) -> None:
        self._backend = backend
        self._host = host
        self._lock = threading.Lock()
        self._known: dict[
            str, dict[str, tuple[str, File]]
        ] = {}  # key -> path -> (signature, file), to copy only changes

    def mirror(self, key: str, folder: Path) -> bool:
        """Copy what has changed in `folder`; False if the folder changed under our hands each time we tried.

        Files whose names begin with "." or end with ".tmp" are taken for unfinished and left out.
        """
        check_key(key)
        with self._lock:
            for _ in range(_TRIES):
                before = _snapshot(folder)
                try:
                    files = [self._mirror_file(key, folder, path, state) for path, state in before.items()]
                except FileNotFoundError:  # replaced by the next checkpoint just now
                    continue
                if _snapshot(folder) == before:
                    self._commit(key, files)
                    self._known[key] = {f.path: (before[f.path], f) for f in files}
                    return True
        return False

    def restore(self, key: str, folder: Path) -> bool:
        """Make `folder` what was mirrored last, on whatever machine; False if nothing usable was."""
        check_key(key)
        for _ in range(_TRIES):
            files = self._manifest(key)
            if files is None:
                return False
            fetched = folder.with_name(f"{folder.name}.restoring")
            shutil.rmtree(fetched, ignore_errors=True)
            try:
                fetched.mkdir(parents=True)
                for file in files:
                    self._restore_file(key, file, fetched / file.path)
            except FileNotFoundError:  # the mirroring went on meanwhile: another manifest names other contents
                continue
            except DamagedArtifact as damage:
                _LOG.warning(
                    "the checkpoints of %s cannot be used, the stage starts from its beginning: %s", key, damage
                )
                return False
            else:
                shutil.rmtree(folder, ignore_errors=True)
                fetched.rename(folder)
                return True
            finally:
                shutil.rmtree(fetched, ignore_errors=True)
        return False

    def remove(self, key: str) -> None:
        """Forget an attempt: its stage has finished."""
        check_key(key)
        with self._lock:
            self._known.pop(key, None)
            self._backend.delete(f"attempts/{key}/manifest.json")
            for entry in list(self._backend.walk(f"attempts/{key}")):
                self._backend.delete(entry.path)

    def _mirror_file(self, key: str, folder: Path, path: str, state: str) -> File:
        known = self._known.get(key, {}).get(path)
        if known is not None and known[0] == state:
            return known[1]
        with explained(self._backend.url, "write the checkpoint", path):
            temporary, target = self._host.temporary()
            with self._host.discarding(temporary), target, (folder / path).open("rb", buffering=0) as source:
                sha256, size_bytes = copy_hashed(source, target)
                self._host.flush(target)
            content = f"attempts/{key}/{sha256}"
            if self._backend is self._host:
                self._host.place(temporary, content)
            else:
                try:
                    self._backend.upload(temporary, content)
                finally:
                    temporary.unlink()
        return File(path, sha256, size_bytes)

    def _commit(self, key: str, files: list[File]) -> None:
        raw, _ = dump_document(
            {
                "files": [{"path": f.path, "sha256": f.sha256, "bytes": f.bytes} for f in files],
                "host": host_name(),
                "mirrored": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        self._backend.write(f"attempts/{key}/manifest.json", raw)
        kept = {"manifest.json", *(file.sha256 for file in files)}
        for entry in list(self._backend.walk(f"attempts/{key}")):
            if entry.path.split("/")[-1] not in kept:
                self._backend.delete(entry.path)

    def _manifest(self, key: str) -> tuple[File, ...] | None:
        document = read_if_whole(self._backend, f"attempts/{key}/manifest.json")
        if document is None:
            return None
        return check_files(tuple(File(f["path"], f["sha256"], f["bytes"]) for f in document["files"]))

    def _restore_file(self, key: str, file: File, target: Path) -> None:
        with explained(str(target.parent), "write", target.name):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._backend.download(f"attempts/{key}/{file.sha256}", target)
            sha256, size_bytes = hash_file(target)
        if (sha256, size_bytes) != (file.sha256, file.bytes):
            raise DamagedArtifact(
                file.path, f"sha256 {file.sha256}", f"sha256 {sha256}", f"attempts/{key}", file.sha256
            )


def _snapshot(folder: Path) -> dict[str, str]:
    """{path: signature} of the folder's finished files."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or path.name.endswith(".tmp"):
            continue
        try:
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = signature(path)
        except FileNotFoundError:
            continue
    return found
