"""Is everything in the store what it says it is? And: setting aside what is not, so that its stage runs again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from artifacts.backend import Backend
from artifacts.digest import digest_json, hash_file
from artifacts.documents import read_document
from artifacts.errors import DamagedArtifact, StoreError
from artifacts.local import LocalBackend
from artifacts.names import Names
from artifacts.objects import Objects, object_path
from artifacts.parallel import in_parallel
from artifacts.record import File, Record
from artifacts.records import Records, read_record, record_path
from artifacts.verdicts import Rejections

Wanted = dict[str, tuple[File, Record]]  # digest -> a file that has it, and the record that has the file
DOCUMENTS = ("runs", "sets", "names", "pins", "accepted", "rejected", "conflicts", "attempts")


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
        """Findings on these records and their objects; `full` reads their bytes, past caches and stamps."""
        findings, wanted = self._records_and_files(records)
        findings += self._sizes(wanted)
        return findings + self._digests([object_path(sha256) for sha256 in wanted], wanted) if full else findings

    def check_all(self, full: bool) -> list[Finding]:
        """Findings on the whole store; `full` reads every byte in it."""
        findings, wanted = self._records_and_files(self._records.index())
        findings += self._sizes(wanted) + self._documents()
        findings += self._dangling_names({finding.path for finding in findings})
        if full:
            contents = [entry.path for folder in ("objects", "attempts") for entry in self._backend.walk(folder)]
            findings += self._digests([path for path in contents if not path.endswith(".json")], wanted)
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
        damages = [damage for damage in in_parallel(self._objects.set_aside, record.files) if damage is not None]
        if damages:
            with suppress(FileNotFoundError):
                self._backend.move(path, f"quarantined/{stage}/{key}/{record.id}.json")
        return damages

    def _records_and_files(self, records: Iterable[tuple[str, str]]) -> tuple[list[Finding], Wanted]:
        findings: list[Finding] = []
        wanted: Wanted = {}
        for stage, key in records:
            path = record_path(stage, key)
            try:
                record = self._records.get(stage, key)
            except (StoreError, KeyError, TypeError) as error:
                findings.append(Finding("damaged document", path, str(error), stage, key))
                continue
            if record is None:  # removed since it was listed
                continue
            if record.components and digest_json(record.components) != key:
                made = digest_json(record.components)
                findings.append(Finding("wrong key", path, f"the key's components give {made}", stage, key))
            wanted |= {file.sha256: (file, record) for file in record.files}
        return findings, wanted

    def _sizes(self, wanted: Wanted) -> list[Finding]:
        def look(file: File, record: Record) -> Finding | None:
            entry = self._backend.entry(object_path(file.sha256))
            if entry is not None and entry.bytes == file.bytes:
                return None
            where = f"{file.path} of {record.label}"
            if entry is None:
                kind, text = "missing object", f"{where} is not there"
            else:
                kind, text = "wrong size", f"{where} has {entry.bytes} bytes, not {file.bytes}"
            return Finding(kind, object_path(file.sha256), text, record.stage, record.key)

        return [finding for finding in in_parallel(lambda pair: look(*pair), wanted.values()) if finding]

    def _digests(self, paths: list[str], wanted: Wanted) -> list[Finding]:
        findings: list[Finding] = []
        for path, found in zip(paths, in_parallel(self._hash, paths), strict=True):
            sha256 = path.split("/")[-1]
            if found is None or found[0] == sha256:
                continue
            file, record = wanted.get(sha256, (None, None))
            if file is None or record is None:
                findings.append(Finding("wrong digest", path, f"{path} has sha256 {found[0]}"))
            elif found[1] == file.bytes:  # otherwise its size has been reported
                text = f"{file.path} of {record.label} has sha256 {found[0]}"
                findings.append(Finding("wrong digest", path, text, record.stage, record.key))
        return findings

    def _documents(self) -> list[Finding]:
        findings: list[Finding] = []
        for folder in DOCUMENTS:
            for entry in self._backend.walk(folder):
                if entry.path.endswith(".json"):
                    try:
                        read_document(self._backend, entry.path)
                    except FileNotFoundError:
                        continue
                    except DamagedArtifact as damage:
                        findings.append(Finding("damaged document", entry.path, str(damage)))
        return findings

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
