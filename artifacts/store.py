"""The store: what every stage ever made, found again by key, name or content.

One value, `Store.open(url)`, in front of small parts that each own a folder of the store (see README.md). Opening costs
one read, makes nothing, and on a local path imports neither fsspec nor anything else that is slow.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.backend import Backend, host_name, open_backend
from artifacts.documents import dump_document, load_document
from artifacts.errors import AmbiguousKey, BadName, NotFound, StoreFormat
from artifacts.local import LocalBackend
from artifacts.names import Name, Names, parse_name
from artifacts.objects import Objects, Verify
from artifacts.record import File, Record, check_inputs, check_key
from artifacts.records import Published, Records
from artifacts.runs import Runs
from artifacts.safety import redact
from artifacts.stamps import Stamps

FORMAT = 1
_PREFIX = re.compile(r"(?:(?P<stage>[a-z][a-z0-9_]*)/)?(?P<prefix>[0-9a-f]{6,64})")


class Store:
    """See the module. Make one with `Store.open`."""

    def __init__(self, backend: Backend, cache: Path) -> None:
        self._backend = backend
        host = backend if isinstance(backend, LocalBackend) else LocalBackend(cache)
        self._stamps = Stamps(cache / "stamps")
        self._objects = Objects(backend, host, self._stamps)
        self._records = Records(backend, self._objects)
        self._runs = Runs(backend)
        self._names = Names(backend)
        self._check_format()

    @classmethod
    def open(cls, url: str | Path = ".fairway", cache: Path | None = None) -> Store:
        """The store at a path or fsspec URL, which may be empty or absent still.

        `cache` is this host's folder for stamps and, for a remote store, for objects; by default
        `<store>/cache/<host>` or `~/.cache/fairway/<digest of the url>`.
        """
        backend = open_backend(url)
        return cls(backend, cache or _default_cache(backend))

    @property
    def url(self) -> str:
        """Where the store lies, as an absolute path or URL."""
        return self._backend.url

    # Results

    def get(self, stage: str, key: str) -> Record | None:
        """The record of a key, or None if there is none: one read. DamagedArtifact if the record's text is damaged."""
        return self._records.get(stage, key)

    def publish(
        self,
        *,
        stage: str,
        key: str,
        folder: Path,
        components: Mapping[str, Any],
        report: Mapping[str, Any],
        inputs: Mapping[str, Any],
        part: str = "",
        provenance: Mapping[str, Any] | None = None,
    ) -> Published:
        """Store a finished stage's output folder under its key.

        `inputs` is {role: {"digest": ..., "from": [producing_record.producer(its_role), ...]}}. The outcome is
        "created"; or "same" if the key was there with equal files; or "conflict" if it was there with others, which
        then are what to go on with (`published.record`), while ours are kept under `conflicts/`.
        """
        record = Record(
            stage=stage,
            part=part,
            key=check_key(key),
            files=(),
            components=dict(components),
            report=dict(report),
            inputs=check_inputs(inputs),
            provenance=redact(dict(provenance or {})),
        )
        self._mark_format()
        return self._records.publish(record, folder)

    def records(self, stage: str | None = None) -> Iterator[tuple[str, str]]:
        """(stage, key) of every record, in one walk."""
        return self._records.keys(stage)

    # Contents

    def fetch(self, files: Iterable[File], folder: Path, verify: Verify = "stamp", link: bool = True) -> None:
        """Lay files out under `folder`, verified: links to read-only objects, or copies with `link=False`.

        "stamp" hashes an object on its first use on this host; "full" always. DamagedArtifact if bytes are wrong.
        """
        self._objects.fetch(files, folder, verify, link)

    def put_file(self, path: Path) -> File:
        """Store one file outside any record; what mentions its sha256 in a run or record keeps it from `gc`."""
        self._mark_format()
        ((sha256, size_bytes),) = self._objects.put([path])
        return File(path.name, sha256, size_bytes)

    def read_object(self, sha256: str) -> bytes:
        """The bytes of a small object, hashed in full."""
        return self._objects.read(sha256)

    # Runs

    def write_run(self, run: dict[str, Any]) -> None:
        """Make or replace the run `run["id"]`."""
        self._mark_format()
        self._runs.write(run)

    def read_run(self, run_id: str) -> dict[str, Any]:
        """The run with this id, or NotFound."""
        return self._runs.read(run_id)

    def list_runs(self) -> list[dict[str, Any]]:
        """Every run, in order of id."""
        return self._runs.all()

    def remove_run(self, run_id: str) -> None:
        """Forget a run, or NotFound; its artifacts stay until `gc`."""
        self._runs.remove(run_id)

    # Names

    def assign_name(self, recipe: str, scale: str, seed: int, stage: str, part: str, key: str) -> str:
        """Name the record of a key: "pr714/full/42/train@3". A record that has a number under this name keeps it."""
        record = self.get(stage, key)
        if record is None:
            raise NotFound(f"only what is stored gets a name; {self.url} has no {stage} {key}; publish it first")
        name = Name(recipe, scale, seed, stage, part)
        return f"{name}@{self._names.assign(name, key, record.id)}"

    def latest(self, recipe: str, scale: str, seed: int, stage: str, part: str = "") -> Record | None:
        """The newest record that has this name and is still in the store."""
        name = Name(recipe, scale, seed, stage, part)
        for version in reversed(self._names.versions(name)):
            record = self._target(self._names.target(name, version))
            if record is not None:
                return record
        return None

    def resolve(self, text: str) -> Record:
        """The record of `recipe/scale/seed/stage[part]@n` (no @n: the newest), `stage/keyprefix` or `keyprefix`."""
        prefix = _PREFIX.fullmatch(text)
        if prefix is not None:
            return self._by_prefix(prefix["stage"], prefix["prefix"])
        if text.count("/") < 2:
            raise BadName(
                "an artifact is recipe/scale/seed/stage[part]@version, stage/key or a key's first 6 or more digits; "
                f"got {text!r}; see `fairway artifacts ls`"
            )
        name, version = parse_name(text)
        record = self._target(self._names.target(name, version))
        if record is None:
            raise NotFound(f"{text} is a name whose record is gone from {self.url}; run the recipe again")
        return record

    def names(self) -> Iterator[str]:
        """Every version of every name, in one walk."""
        for name, version in self._names.all():
            yield f"{name}@{version}"

    def _target(self, target: Mapping[str, str]) -> Record | None:
        record = self.get(target["stage"], target["key"])
        return record if record is not None and record.id == target["record"] else None

    def _by_prefix(self, stage: str | None, prefix: str) -> Record:
        found = list(self._records.keys(stage, prefix))
        if len(found) > 1:
            shown = ", ".join(f"{s}/{key[:16]}" for s, key in found[:8])
            raise AmbiguousKey(
                f"a key's beginning must be that of one record; {prefix} begins {shown}; give more of it"
            )
        record = self.get(*found[0]) if found else None
        if record is None:
            raise NotFound(f"no key in {self.url} begins with {prefix}; see `fairway artifacts ls`")
        return record

    # Format

    def _check_format(self) -> None:
        try:
            document, _ = load_document(self._backend.read("store.json"), "store.json")
        except FileNotFoundError:
            self._marked = False
            return
        self._marked = True
        if document.get("format") != FORMAT:
            raise StoreFormat(
                f"this Fairway reads stores of format {FORMAT}; {self.url} has format {document.get('format')!r}; "
                "update Fairway or choose another store with --store"
            )

    def _mark_format(self) -> None:
        if not self._marked:
            self._backend.create("store.json", dump_document({"format": FORMAT})[0])
            self._marked = True


def _default_cache(backend: Backend) -> Path:
    if isinstance(backend, LocalBackend):
        return backend.path(f"cache/{host_name()}")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fairway" / hashlib.sha256(backend.url.encode()).hexdigest()[:16]
