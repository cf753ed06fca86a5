"""Is everything in the store what it says it is? And: setting aside what is not, so that its stage runs again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from artifacts.backend import Backend
from artifacts.digest import digest_json, hash_file
from artifacts.documents import load_document
from artifacts.errors import DamagedArtifact, StoreError
from artifacts.local import LocalBackend
from artifacts.names import Names
from artifacts.objects import Objects, in_parallel, object_path
from artifacts.record import File, Record
from artifacts.records import Records, read_record, record_path
from artifacts.verdicts import Rejections

DOCUMENTS = ("runs", "names", "pins", "accepted", "rejected", "conflicts", "attempts")


@dataclass(frozen=True)
class Finding:
    """Something in the store that is not what it says it is.

    `kind`: "missing object" | "wrong size" | "wrong digest" | "damaged document" | "wrong key" | "dangling name".
    """

    kind: str
    path: str  # of the file in the store
    text: str
    stage: str = ""  # of the record that suffers, if any
    key: str = ""


class Checker:
    """Looks through a store."""

    def __init__(
        self,
        backend: Backend,
        host: LocalBackend,
        objects: Objects,
        records: Records,
        names: Names,
        rejections: Rejections,
    ) -> None:
        self._backend = backend
        self._host = host
        self._objects = objects
        self._records = records
        self._names = names
        self._rejections = rejections

    def check(self, records: Iterable[tuple[str, str]], full: bool) -> list[Finding]:
        """Findings on these records and their objects; `full` reads every byte in the store, past caches and stamps."""
        findings: list[Finding] = []
        wanted: dict[str, tuple[File, Record]] = {}
        for stage, key in records:
            path = record_path(stage, key)
            try:
                record = self._records.get(stage, key)
            except (StoreError, KeyError, TypeError) as error:
                findings.append(Finding("damaged document", path, str(error), stage, key))
                continue
            if record is None:
                continue
            if record.components and digest_json(record.components) != key:
                made = digest_json(record.components)
                findings.append(Finding("wrong key", path, f"the key's components give {made}", stage, key))
            wanted |= {file.sha256: (file, record) for file in record.files}
        return findings + [found for found in in_parallel(lambda w: self._object(*w, full), wanted.values()) if found]

    def check_rest(self, full: bool) -> list[Finding]:
        """Findings on what is no record: other documents, names, and with `full` objects that no record has."""
        findings: list[Finding] = []
        for folder in DOCUMENTS:
            for entry in self._backend.walk(folder):
                if not entry.path.endswith(".json"):
                    continue
                with suppress(FileNotFoundError):
                    try:
                        load_document(self._backend.read(entry.path), entry.path)
                    except DamagedArtifact as damage:
                        findings.append(Finding("damaged document", entry.path, str(damage)))
        findings += self._dangling_names({finding.path for finding in findings})
        if full:
            entries = list(self._backend.walk("objects"))
            hashed = in_parallel(lambda entry: self._hash(entry.path), entries)
            for entry, found in zip(entries, hashed, strict=True):
                name = entry.path.split("/")[-1]
                if found is not None and found[0] != name:
                    findings.append(Finding("wrong digest", entry.path, f"found sha256 {found[0]}"))
        return findings

    def quarantine(self, stage: str, key: str) -> list[DamagedArtifact]:
        """Verify a record in full; if it is damaged, move it and its damaged objects to `quarantined/`."""
        path = record_path(stage, key)
        try:
            record = read_record(self._backend, path)
        except FileNotFoundError:
            return [DamagedArtifact(path, "a record", None, self._backend.url)]
        except DamagedArtifact as damage:
            self._backend.move(path, f"quarantined/{stage}/{key}/damaged.json")
            return [damage]
        damages = [damage for damage in map(self._objects.set_aside, record.files) if damage is not None]
        if damages:
            with suppress(FileNotFoundError):
                self._backend.move(path, f"quarantined/{stage}/{key}/{record.id}.json")
        return damages

    def _object(self, file: File, record: Record, full: bool) -> Finding | None:
        path = object_path(file.sha256)
        where = f"{file.path} of {record.label}"
        entry = self._backend.entry(path)
        if entry is None:
            return Finding("missing object", path, f"{where} is not there", record.stage, record.key)
        if entry.bytes != file.bytes:
            text = f"{where} has {entry.bytes} bytes, not {file.bytes}"
            return Finding("wrong size", path, text, record.stage, record.key)
        found = self._hash(path) if full else None
        if found is not None and found[0] != file.sha256:
            return Finding("wrong digest", path, f"{where} has sha256 {found[0]}", record.stage, record.key)
        return None

    def _hash(self, path: str) -> tuple[str, int] | None:
        """Hash what the store has, not what this host remembers of it."""
        if self._backend is self._host:
            try:
                return hash_file(self._host.path(path))
            except FileNotFoundError:
                return None
        temporary, target = self._host.temporary()
        target.close()
        try:
            self._backend.download(path, temporary)
            return hash_file(temporary)
        except FileNotFoundError:
            return None
        finally:
            temporary.unlink()

    def _dangling_names(self, damaged: set[str]) -> Iterator[Finding]:
        for name, version in self._names.all():
            path = f"{name.folder}/{version}.json"
            if path in damaged:
                continue
            target = self._names.target(name, version)
            stage, key, record_id = target["stage"], target["key"], target["record"]
            with suppress(StoreError):
                record = self._records.get(stage, key)
                if record is not None and record.id == record_id:
                    continue
            quarantined = self._backend.entry(f"quarantined/{stage}/{key}/{record_id}.json") is not None
            if not quarantined and self._rejections.find(stage, key, record_id) is None:
                yield Finding(
                    "dangling name", path, f"{name}@{version} points to {stage} {key}, which is gone", stage, key
                )
