"""Artifacts on the move: between stores, and into and out of one file.

An exported file is a plain tar, made the same from the same artifact:

    fairway-artifact.json            {"format": 1, "records": ["records/<stage>/<key>.json", ...]}, the artifact first
    records/<stage>/<key>.json       as in the store
    objects/<aa>/<sha256>            as in the store

Objects come before records wherever anything is written, so an interrupted copy leaves no half artifact and goes on
where it stopped.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from artifacts.backend import Backend, explained
from artifacts.documents import dump_document, load_document
from artifacts.errors import BadArchive, BadName, DamagedArtifact
from artifacts.meter import Meter, Moved
from artifacts.objects import Objects, object_path
from artifacts.parallel import in_parallel
from artifacts.record import File, Record, record_from_json, record_to_json
from artifacts.records import Published, Records, record_path

Tell = Callable[[Moved], None]
_HEAD = "fairway-artifact.json"
_MEMBER = re.compile(rf"{_HEAD}|objects/([0-9a-f]{{2}})/\1[0-9a-f]{{62}}|records/[a-z][a-z0-9_]*/[0-9a-f]{{64}}\.json")


@dataclass(frozen=True)
class Transferred:
    """What a copy did. `published` has the artifact asked for first, then what it came from."""

    published: tuple[Published, ...]
    objects: int  # copied; those that were there already are not counted
    bytes: int


@dataclass(frozen=True)
class Side:
    """One store's parts that a copy needs."""

    backend: Backend
    objects: Objects
    records: Records


def closure(records: Records, roots: Iterable[Record]) -> list[Record]:
    """The roots and every stored record that they came from, each before what it came from."""
    found: dict[tuple[str, str], Record] = {}
    queue = list(roots)
    while queue:
        record = queue.pop(0)
        if found.setdefault((record.stage, record.key), record) is record:
            producers = {(p["stage"], p["key"]): None for p in record.producers()}
            queue += [r for stage, key in producers if (r := records.get(stage, key)) is not None]
    return list(found.values())


def copy(
    source: Side,
    target: Side,
    records: list[Record],
    on_object: Callable[[File], None] | None,
    tell: Tell | None = None,
) -> Transferred:
    """Copy records and their objects to another store, what a record came from before the record."""
    files = list({file.sha256: file for record in records for file in record.files}.values())
    missing = target.objects.missing(files)
    meter = Meter("copying", tell)
    meter.expect(sum(file.bytes for file in missing))

    def copy_object(file: File) -> None:
        source.objects.verify([file])
        target.objects.adopt(file, source.objects.held(file.sha256), meter)
        if on_object is not None:
            on_object(file)

    in_parallel(copy_object, missing)
    published = [target.records.adopt(record) for record in reversed(records)]
    return Transferred(tuple(reversed(published)), len(missing), sum(file.bytes for file in missing))


def export(source: Side, records: list[Record], path: Path, tell: Tell | None = None) -> None:
    """Write records and their objects to one file, every byte hashed on the way; nothing is left if that fails."""
    files = {file.sha256: file for record in records for file in record.files}
    source.objects.verify(files.values(), "full", Meter("fetching", tell))
    partial = path.with_name(path.name + ".partial")
    with explained(str(path), "write", path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(partial, "w") as tar:
                head = {"format": 1, "records": [record_path(record.stage, record.key) for record in records]}
                _add_bytes(tar, _HEAD, dump_document(head)[0])
                for record in records:
                    _add_bytes(tar, record_path(record.stage, record.key), dump_document(record_to_json(record))[0])
                for sha256, file in sorted(files.items()):
                    with source.objects.held(sha256).open("rb") as content:
                        tar.addfile(_member(object_path(sha256), file.bytes), content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def import_file(target: Side, path: Path, tell: Tell | None = None) -> Transferred:
    """Store what an exported file holds, every byte hashed; BadArchive if anything in it is not what it says."""
    try:
        with explained(str(path), "read", path.name), tarfile.open(path, "r:") as tar:
            meter = Meter("importing", tell)
            meter.expect(path.stat().st_size)
            return _import(target, tar, path, meter)
    except (tarfile.TarError, FileNotFoundError) as error:
        raise BadArchive(
            f"an exported artifact is a whole tar file; {path} is not ({error}); export it again"
        ) from error


def _import(target: Side, tar: tarfile.TarFile, path: Path, meter: Meter) -> Transferred:
    head, records, put = _read_members(target, tar, path, meter)
    if set(head) != set(records):
        raise BadArchive(f"{path} does not hold the records that its head lists; export it again")
    lacking = [f for r in records.values() for f in r.files if put.get(f.sha256) != f.bytes]
    if lacking:
        raise BadArchive(f"{path} lacks {lacking[0].path} (sha256 {lacking[0].sha256}); export it again")
    published = [target.records.adopt(records[name]) for name in reversed(head)]
    return Transferred(tuple(reversed(published)), len(put), sum(put.values()))


def _read_members(
    target: Side, tar: tarfile.TarFile, path: Path, meter: Meter
) -> tuple[list[str], dict[str, Record], dict[str, int]]:
    """(paths of records in order, records by path, bytes by object's digest); the objects are stored on the way."""
    head: list[str] = []
    records: dict[str, Record] = {}
    put: dict[str, int] = {}
    for member in tar:
        content = tar.extractfile(member) if member.isreg() else None
        if content is None or _MEMBER.fullmatch(member.name) is None:
            raise BadArchive(f"an exported artifact holds a head, records and objects; {path} holds {member.name!r}")
        try:
            if member.name == _HEAD:
                head = load_document(content.read(), _HEAD)[0]["records"]
            elif member.name.startswith("records/"):
                record = record_from_json(*load_document(content.read(), member.name))
                records[record_path(record.stage, record.key)] = record
            else:
                sha256 = member.name.rsplit("/", 1)[-1]
                put[sha256] = target.objects.put_stream(content, sha256, member.name, meter)
        except (DamagedArtifact, BadName, KeyError, TypeError) as error:
            raise BadArchive(f"{path} was altered: {error}; export it again") from error
    return head, records, put


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """A tar header without clock or owner."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o444
    return member


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_member(name, len(data)), io.BytesIO(data))
