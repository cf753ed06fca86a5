"""Records: `records/<stage>/<key>.json`, created last and only if absent, so that their existence is completion."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from artifacts.backend import Backend, Entry
from artifacts.documents import dump_document, load_document, read_document
from artifacts.errors import BadName, DamagedArtifact, StoreUnavailable
from artifacts.meter import SILENT, Meter
from artifacts.objects import Objects
from artifacts.record import File, Record, check_files, check_key, check_stage, record_from_json, record_to_json

_PATH = re.compile(r"records/([a-z][a-z0-9_]*)/([0-9a-f]{64})\.json")


@dataclass(frozen=True)
class Published:
    """What became of a result. `record` is the one to go on with; `ours` is the other one in a conflict."""

    record: Record
    outcome: Literal["created", "same", "conflict"]
    ours: Record


def record_path(stage: str, key: str) -> str:
    """Where a record lies in a store."""
    return f"records/{check_stage(stage)}/{check_key(key)}.json"


def read_record(backend: Backend, path: str) -> Record:
    """The record of a document, wherever it lies; DamagedArtifact if a byte of it is another."""
    document, digest = read_document(backend, path)
    if document.get("format") != 1:
        raise BadName(f"records here are of format 1; {path} has {document.get('format')!r}; update Fairway")
    return record_from_json(document, digest)


class Records:
    """The records of a store."""

    def __init__(self, backend: Backend, objects: Objects) -> None:
        self._backend = backend
        self._objects = objects

    def get(self, stage: str, key: str) -> Record | None:
        """The record of a key, or None if its stage has not finished: one read of one file."""
        path = record_path(stage, key)
        try:
            record = read_record(self._backend, path)
        except FileNotFoundError:
            return None
        if (record.stage, record.key) != (stage, key):
            raise DamagedArtifact(path, f"the record of {stage} {key}", f"that of {record.stage} {record.key}")
        return record

    def whole(self, stage: str, key: str) -> Record | None:
        """The same, but None if the record is damaged: for what looks through many."""
        try:
            return self.get(stage, key)
        except DamagedArtifact:
            return None

    def publish(self, record: Record, folder: Path, meter: Meter = SILENT) -> Published:
        """Store every file of `folder`, then the record, whose `files`, `id` and time are filled in here."""
        paths = scan_folder(folder)
        files = tuple(
            File(path, sha256, size_bytes)
            for path, (sha256, size_bytes) in zip(
                paths, self._objects.put((folder / p for p in paths), meter), strict=True
            )
        )
        # A `gc` elsewhere may have removed an old object that this result shares; ours are fresh, so once is enough.
        self._objects.put(folder / file.path for file in self._objects.missing(files))
        if lost := self._objects.missing(files):
            raise StoreUnavailable(
                f"a store must keep what it is given; {self._backend.url} lost {lost[0].path} twice; see whether "
                "something else removes its files"
            )
        return self.add(record, files)

    def add(self, record: Record, files: tuple[File, ...]) -> Published:
        """Store a new record whose objects are in place."""
        return self._create(*stamp_record(record, check_files(files)))

    def adopt(self, record: Record) -> Published:
        """Store another store's record, as it is, whose objects are in place."""
        there = self.get(record.stage, record.key)
        if there is not None and there.id == record.id:
            return Published(there, "same", record)
        return self._create(self.stored(record)[1], record)

    def stored(self, record: Record) -> tuple[str, bytes]:
        """(path, text) of a record as it is stored."""
        return record_path(record.stage, record.key), dump_document(record_to_json(record))[0]

    def _create(self, raw: bytes, ours: Record) -> Published:
        while not self._backend.create(record_path(ours.stage, ours.key), raw):
            winner = self.get(ours.stage, ours.key)
            if winner is None:  # set aside since; try again
                continue
            if winner.id == ours.id:  # a driver that lost the answer and asked again
                return Published(ours, "created", ours)
            if winner.files == ours.files:
                return Published(winner, "same", ours)
            self._backend.write(f"conflicts/{ours.stage}/{ours.key}/{ours.id}.json", raw)
            return Published(winner, "conflict", ours)
        return Published(ours, "created", ours)

    def all(self, stage: str | None = None) -> list[Record]:
        """Every whole record, in order of stage and key; damaged ones are left out, and found by `verify`."""
        entries = [entry for entry, _, _ in self._listed(stage)]
        found: list[Record] = []
        for entry, raw in zip(entries, self._backend.read_listed(entries), strict=True):
            with contextlib.suppress(DamagedArtifact):
                found += [record_from_json(*load_document(raw, entry.path))] if raw is not None else []
        return found

    def index(self, stage: str | None = None, key_prefix: str = "") -> Iterator[tuple[str, str]]:
        """(stage, key) of every record, in one walk."""
        for _, its_stage, key in self._listed(stage, key_prefix):
            yield its_stage, key

    def _listed(self, stage: str | None, key_prefix: str = "") -> Iterator[tuple[Entry, str, str]]:
        if stage is None:
            entries = self._backend.walk("records")
        else:
            entries = self._backend.walk(f"records/{check_stage(stage)}", key_prefix)
        for entry in entries:
            found = _PATH.fullmatch(entry.path)
            if found is not None and found[2].startswith(key_prefix):
                yield entry, found[1], found[2]

    def remove(self, record: Record) -> None:
        """Remove a record, unless another result took its place in the meantime."""
        path = record_path(record.stage, record.key)
        try:
            _, digest = read_document(self._backend, path)
        except FileNotFoundError:
            return
        except DamagedArtifact:
            digest = record.id
        if digest == record.id:
            self._backend.delete(path)


def stamp_record(record: Record, files: tuple[File, ...]) -> tuple[bytes, Record]:
    """(text, record) as stored: with its files, and with the time, which tells two results of one key apart."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    provenance: Mapping[str, Any] = {"published": now, **record.provenance}
    whole = Record(
        stage=record.stage,
        part=record.part,
        key=record.key,
        files=tuple(sorted(files)),
        components=record.components,
        report=record.report,
        inputs=record.inputs,
        provenance=dict(provenance),
    )
    raw, digest = dump_document(record_to_json(whole))
    # Read back, so that what the caller goes on with is what every later run will read.
    return raw, record_from_json(load_document(raw, record.label)[0], digest)


def scan_folder(folder: Path) -> list[str]:
    """Relative paths of all files of an output, sorted; refuses what the store cannot keep."""
    paths: list[str] = []
    for parent, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            path = Path(parent, name)
            shown = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise BadName(f"an output holds plain files and folders only; {shown!r} is neither; write a copy")
            if path.is_file():
                paths.append(shown)
    loose = [path for path in paths if "/" not in path]
    if loose:
        raise BadName(f"every file of an output lies in a role's folder; {loose[0]!r} does not; move it into one")
    return sorted(paths)
