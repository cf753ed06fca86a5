"""Fingerprints of what comes from outside the river: documents and imported tokenizers.

A fingerprint is made of contents where they are at hand, and of what the other side vouches for (ETag, hub revision)
where they are not. Where something lies is provenance and never part of the digest, so moving a corpus reruns nothing.
`plan` asks for fingerprints each time, so what was hashed once is remembered in a small file beside the store.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifacts.backend import host_name
from artifacts.keyring import names
from stages.contract import StageError
from stages.corpus.config import EMBEDDED, Config
from stages.corpus.sources import SourceFile, list_files
from stages.urls import filesystem

CACHE_FILE = "fingerprints.json"
LISTED_FILES = 64  # files named one by one in the provenance
CHUNK_BYTES = 1 << 20
# A file that was written this recently may be written again within its clock's tick: its hash is not remembered.
SETTLED_S = 2.0

_VOUCHED = ("ETag", "etag", "md5Hash", "Content-MD5", "blob_id", "sha", "VersionId", "generation")
_DATED = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified")


def fingerprint_corpus(config: Config, cache: Path) -> tuple[str, dict[str, Any]]:
    """(digest, provenance) of the sources of a corpus; `cache` is a folder for remembered hashes. Raises StageError."""
    memory = _Memory(cache)
    parts: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    for role, url in (("source", config.source), ("val_source", config.val_source)):
        if url:
            with _with_own_key(url):
                parts[role], provenance[role] = _source(url, config, memory)
    memory.save()
    return _digest(parts), provenance


def fingerprint_model(url: str) -> str:
    """sha256 of an imported `.model`. Raises StageError."""
    fs, path = filesystem(url)
    with _with_own_key(url):
        try:
            return hashlib.sha256(fs.cat_file(path)).hexdigest()
        except Exception as error:  # every filesystem has errors of its own
            raise StageError(f"a tokenizer must be readable; {url} is not: {type(error).__name__}: {error}") from error


@contextmanager
def _with_own_key(url: str) -> Iterator[None]:
    """Say whose key opens what lies outside, if it is refused: a run's block is for its store, stages get no secrets.

    `corpus` and `vocabulary` read their sources themselves, so what they read with is the machine's own.
    """
    try:
        yield
    except Exception as error:
        from artifacts.remote import is_refusal  # with the drivers, which who plans needs only for what is remote

        blocks = ", ".join(names())
        if not blocks or not is_refusal(error):
            raise
        said = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
        raise StageError(
            f"{said}; {blocks} opens this run's store and no source, since stages get no secrets: let {host_name()}, "
            f"where this ran, read {url} with a key of its own (variables of whoever starts the run or its worker, "
            "such as AWS_ACCESS_KEY_ID, a configuration file or a role; reading and listing are enough)"
        ) from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _source(url: str, config: Config, memory: _Memory) -> tuple[Any, dict[str, Any]]:
    """(what identifies one source, its provenance)."""
    if url == EMBEDDED:
        known = memory.embedded()
        return {"embedded": known["digest"]}, {"url": EMBEDDED, **known}
    files = list_files(url, config.format)
    identity, listed = [], []
    for file in files:
        how, value = _version(file, memory)
        identity.append([file.kind, file.compression, _named_split(file), how, value])
        listed.append({"name": file.name, "bytes": file.bytes, how: value})
    provenance: dict[str, Any] = {"url": url, "files": len(files), "bytes": sum(file.bytes for file in files)}
    if len(files) <= LISTED_FILES:
        provenance["listed"] = listed
    return identity, provenance


def _named_split(file: SourceFile) -> str:
    """The only part of a file's name that `corpus` reads: which split a published shard belongs to."""
    return "".join(s for s in ("_train_", "_val_") if s in file.name) if file.kind == "shards" else ""


def _version(file: SourceFile, memory: _Memory) -> tuple[str, Any]:
    """(kind of evidence, its value) for the contents of one file."""
    protocols = (file.fs.protocol,) if isinstance(file.fs.protocol, str) else file.fs.protocol
    if "file" in protocols:
        return "sha256", memory.sha256(Path(file.path))
    if "memory" in protocols:
        return "sha256", _sha256(file)
    info = file.info
    for attempt in range(2):
        if lfs := info.get("lfs"):
            return "sha256", lfs["sha256"]
        for name in _VOUCHED:
            if info.get(name):
                return name.lower(), str(info[name]).strip('"')
        if attempt == 0:
            info = file.fs.info(file.path)  # a listing may say less than a question about one file
    dated = next((str(info[name]) for name in _DATED if info.get(name)), "")
    if dated and file.bytes:
        return "size and time", [file.bytes, dated]
    return "sha256", _sha256(file)  # nobody vouches for anything: read it


def _sha256(file: SourceFile) -> str:
    with file.fs.open(file.path, "rb") as stream:
        return _hash(iter(lambda: stream.read(CHUNK_BYTES), b""))


def _hash(chunks: Any) -> str:
    whole = hashlib.sha256()
    for chunk in chunks:
        whole.update(chunk)
    return whole.hexdigest()


class _Memory:
    """Hashes of local files and of the embedded text, trusted as long as the files' stamps are what they were."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CACHE_FILE
        self._changed = False
        known = self._load()
        self._files: dict[str, Any] = known.get("files", {})
        self._embedded: Mapping[str, Any] = known.get("embedded", {})

    def _load(self) -> dict[str, Any]:
        """What was saved; nothing if it is absent or damaged, and everything is hashed again."""
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            return known["memory"] if known["sha256"] == _digest(known["memory"]) else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def sha256(self, path: Path) -> str:
        """sha256 of a local file's content."""
        try:
            before = _stamp(path)
            known = self._files.get(str(path), {})
            if known.get("stamp") == before:
                return known["sha256"]
            with path.open("rb") as stream:
                digest = _hash(iter(lambda: stream.read(CHUNK_BYTES), b""))
            after = _stamp(path)
        except OSError as error:
            raise StageError(f"a source must be readable; {path} is not: {error.strerror}; check it") from error
        if after != before:
            raise StageError(f"a source must not change while it is read; {path} did; run again when it is complete")
        if time.time() - before[1] / 1e9 > SETTLED_S:
            self._files[str(path)] = {"stamp": before, "sha256": digest}
            self._changed = True
        return digest

    def embedded(self) -> dict[str, Any]:
        """digest, documents and bytes of the embedded text; extracting it takes seconds, recognising it does not."""
        from stages.corpus import embedded  # here: sources on disk need none of it

        stamp = embedded.stamp()
        if self._embedded.get("stamp") != stamp:
            modules = embedded.extract()
            size = sum(len(module.text.encode()) for module in modules)
            facts = {"digest": embedded.digest(modules), "documents": len(modules), "bytes": size}
            self._embedded = {"stamp": stamp, **facts}
            self._changed = True
        return {name: value for name, value in self._embedded.items() if name != "stamp"}

    def save(self) -> None:
        """Write what was learnt; a folder that cannot be written costs time and nothing else."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{CACHE_FILE}.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                memory = {"files": self._files, "embedded": dict(self._embedded)}
                json.dump({"memory": memory, "sha256": _digest(memory)}, file)
            os.replace(name, self._path)
        except OSError:
            return


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
