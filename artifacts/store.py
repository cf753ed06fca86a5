"""The store: what every stage ever made, found again by key, name or content.

One value, `Store.open(url)`, in front of small parts that each own a folder of the store (see README.md). Opening costs
one read, makes nothing, and on a local path imports neither fsspec nor anything else that is slow.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.attempts import Attempts
from artifacts.backend import Backend, host_name, open_backend
from artifacts.check import Checker, Finding
from artifacts.documents import dump_document, read_document
from artifacts.errors import DamagedArtifact, NotFound, StoreFormat, StoreUnavailable
from artifacts.lease import TIME_LIMIT_S, Lease, Waiting, lease
from artifacts.local import LocalBackend
from artifacts.lookup import Lookup
from artifacts.meter import Meter, Moved
from artifacts.names import Name, Names, parse_name
from artifacts.objects import Objects, Verify
from artifacts.record import File, Record, check_inputs, check_key
from artifacts.records import Published, Records
from artifacts.runs import Runs
from artifacts.safety import redact
from artifacts.stamps import Stamps
from artifacts.verdicts import Acceptance, Acceptances, Pins, Rejections

if TYPE_CHECKING:
    from artifacts.collect import Collected
    from artifacts.transfer import Side, Transferred

FORMAT = 1
Tell = Callable[[Moved], None]


class Store:
    """See the module. Make one with `Store.open`."""

    def __init__(self, backend: Backend, cache: Path) -> None:
        self._backend = backend
        self._host = host = backend if isinstance(backend, LocalBackend) else LocalBackend(cache)
        self._stamps = Stamps(cache / "stamps")
        self._objects = Objects(backend, host, self._stamps)
        self._records = Records(backend, self._objects)
        self._runs = Runs(backend)
        self._sets = Runs(backend, "set")
        self._names = Names(backend)
        self._acceptances = Acceptances(backend)
        self._rejections = Rejections(backend, self._records)
        self._lookup = Lookup(backend, self._records, self._names, self._rejections)
        self._pins = Pins(backend)
        self._attempts = Attempts(backend, host)
        self._checker = Checker(backend, host, self._objects, self._records, self._names, self._rejections)
        self._check_format()

    @classmethod
    def open(cls, url: str | Path = ".fairway", cache: Path | None = None, proven: bool = False) -> Store:
        """The store at a path or fsspec URL, which may be empty or absent still.

        `proven`: another machine has just used it, so that it is waited for from the first call on.

        `cache` is this host's folder for stamps and, for a remote store, for objects; by default
        `<store>/cache/<host>` or `~/.cache/fairway/<digest of the url>`.
        """
        backend = open_backend(url, proven)
        cache = cache or _default_cache(backend)
        backend.remember(cache)
        return cls(backend, cache)

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
        tell: Tell | None = None,
    ) -> Published:
        """Store a finished stage's output folder under its key.

        `inputs` is {role: {"digest": ..., "from": [producing_record.producer(its_role), ...]}}. The outcome is
        "created"; or "same" if the key was there with equal files; or "conflict" if it was there with others, which
        then are what to go on with (`published.record`), while ours are kept under `conflicts/`. Here and below `tell`
        hears now and then how far a transfer is that takes more than a second.
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
        self._make_way(stage, key)
        published = self._records.publish(record, folder, Meter("storing results", tell))
        reason = self._rejections.of(published.record, fresh=True)
        if reason is not None:  # an input was rejected while this was made: no later run may take it for a hit
            self._rejections.set_aside(published.record, reason)
        return published

    def quarantine(self, stage: str, key: str) -> list[DamagedArtifact]:
        """Verify a record in full; if it is damaged, set it aside so that its stage runs again. What was wrong.

        Moves the record and its damaged objects to `quarantined/`. Equal bytes that are published later heal the rest.
        """
        return self._checker.quarantine(stage, key)

    def records(self, stage: str | None = None) -> Iterator[tuple[str, str]]:
        """(stage, key) of every record, in one walk."""
        return self._records.index(stage)

    def all_records(self, stage: str | None = None) -> list[tuple[Record, list[str]]]:
        """Every whole record, of one stage or all, with the names that point to it."""
        named: dict[str, list[str]] = {}
        for name, target in self._names.targets():
            named.setdefault(target["record"], []).append(name)
        return [(record, named.get(record.id, [])) for record in self._records.all(stage)]

    def note(self, record: Record) -> None:
        """Let the index that is left have a record that another process published; see `leave_index`."""
        self._backend.note(*self._records.stored(record))

    def leave_index(self) -> None:
        """Let hosts that list the store for the first time read at once what was written here since the last time.

        At the end of a run, of a copy: one call. No error: without it, documents are read one by one.
        """
        self._backend.leave_index()

    # Contents

    def fetch(
        self,
        files: Iterable[File],
        folder: Path,
        verify: Verify = "stamp",
        link: bool = True,
        tell: Tell | None = None,
    ) -> None:
        """Lay files out under `folder`, verified: links to read-only objects, or copies with `link=False`.

        "stamp" hashes an object on its first use on this host; "full" always. DamagedArtifact if bytes are wrong.
        """
        self._objects.fetch(files, folder, verify, link, Meter("fetching inputs", tell))

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

    def write_set(self, declared: dict[str, Any]) -> None:
        """Make or replace the set `declared["id"]`: runs that are declared before they start."""
        self._mark_format()
        self._sets.write(declared)

    def read_set(self, set_id: str) -> dict[str, Any]:
        """The set with this id, or NotFound."""
        return self._sets.read(set_id)

    def list_sets(self) -> list[dict[str, Any]]:
        """Every set, in order of id."""
        return self._sets.all()

    # Names

    def assign_name(self, recipe: str, scale: str, seed: int, stage: str, part: str, key: str) -> str:
        """Name the record of a key: "pr714/full/42/train@3". A record that has a number under this name keeps it."""
        record = self.get(stage, key) or self._rejections.by_prefix(stage, key).get((stage, key))
        if record is None:
            raise NotFound(f"only what is stored gets a name; {self.url} has no {stage} {key}; publish it first")
        name = Name(recipe, scale, seed, stage, part)
        return f"{name}@{self._names.assign(name, key, record.id)}"

    def latest(self, recipe: str, scale: str, seed: int, stage: str, part: str = "") -> Record | None:
        """The newest record that has this name and is still in the store."""
        return self._lookup.latest(Name(recipe, scale, seed, stage, part))

    def resolve(self, text: str) -> Record:
        """The record of `recipe/scale/seed/stage[part]@n` (no @n: the newest), `stage/keyprefix` or `keyprefix`."""
        return self._lookup.resolve(text)

    def names(self) -> Iterator[str]:
        """Every version of every name, in one walk."""
        for name, version in self._names.all():
            yield f"{name}@{version}"

    # Verdicts

    def accept(
        self,
        stage: str,
        old: Mapping[str, str],
        new: Mapping[str, str],
        reason: str,
        who: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> Acceptance:
        """Record that two states of a stage's code, {module: digest} each, give the same bytes."""
        self._mark_format()
        return self._acceptances.add(
            Acceptance(stage, dict(old), dict(new), reason, who, evidence=redact(dict(evidence or {})))
        )

    def acceptances(self, stage: str | None = None) -> list[Acceptance]:
        """What was accepted for a stage, or for all."""
        return self._acceptances.of(stage)

    def equivalents(self, stage: str, code: Mapping[str, str]) -> list[dict[str, str]]:
        """Every other state of the code that acceptances, in either direction and in chains, hold equal to this one."""
        return self._acceptances.equivalents(stage, code)

    def reject(self, text: str, reason: str, who: str = "") -> list[Record]:
        """Set an artifact and all that came from it aside, so that their stages run again; what was set aside."""
        return self._rejections.reject(self.resolve(text), reason, who)

    def rejection(self, record: Record) -> str | None:
        """Why a record must not be used, its own rejection or that of anything it came from; None if there is none."""
        return self._rejections.of(record)

    def rejected(self) -> list[tuple[Record, str]]:
        """(record, reason) of everything that was rejected."""
        return self._rejections.all()

    def pin(self, text: str, reason: str = "", who: str = "") -> Record:
        """Keep an artifact from `gc`."""
        record = self.resolve(text)
        self._pins.add(record, reason, who)
        return record

    def unpin(self, text: str) -> None:
        """Take a pin away."""
        self._pins.remove(self.resolve(text).key)

    def pins(self) -> list[dict[str, Any]]:
        """{"stage", "part", "key", "reason", "who", "at"} of every pin."""
        return self._pins.all()

    # Work in progress

    def lease(
        self,
        key: str,
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
        on_wait: Callable[[str], None] | None = None,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> AbstractContextManager[Lease]:
        """Hold the key's lease during a `with` block; waits for whoever holds it, and tells `on_wait` who that is.

        LeaseTimeout after `timeout_s`; LeaseCancelled when `cancel` is set. `time_limit_s` is the silence after which a
        holder on another host is taken for dead.
        """
        return lease(self._backend, key, Waiting(key, timeout_s, cancel, on_wait), time_limit_s)

    def mirror_attempt(self, key: str, folder: Path) -> bool:
        """Copy what has changed in a checkpoint folder; False, replacing nothing, if it changed all the while."""
        self._mark_format()
        return self._attempts.mirror(key, folder)

    def restore_attempt(self, key: str, folder: Path) -> bool:
        """Make `folder` what was mirrored last, on whatever machine; False if nothing usable was."""
        return self._attempts.restore(key, folder)

    def remove_attempt(self, key: str) -> None:
        """Forget an attempt: its stage has finished."""
        self._attempts.remove(key)

    # Care

    def verify(self, scope: Iterable[str] = (), full: bool = True) -> list[Finding]:
        """Look through artifacts (names, keys or stages), or the whole store; what is not as it should be.

        `full` reads every byte in the store itself; otherwise presence and size are compared.
        """
        wanted = list(scope)
        if wanted:
            return self._checker.check(self._lookup.resolve_all(wanted), full)
        return self._checker.check_all(full)

    def gc(self, *, delete: bool = False, grace_s: float = 24 * 3600.0, keep_last: int | None = None) -> Collected:
        """What no run, name, pin, held lease or attempt needs and is older than the grace period; see `collect`."""
        from artifacts.collect import collect

        host = None if self._host is self._backend else self._host
        return collect(self._backend, host, delete=delete, grace_s=grace_s, keep_last=keep_last)

    def du(self) -> dict[str, Any]:
        """Bytes by kind and by stage; see `collect.weigh`."""
        from artifacts.collect import weigh

        return weigh(self._backend)

    # Moving

    def export(self, text: str, path: Path, closure: bool = False, tell: Tell | None = None) -> Record:
        """Write an artifact, with `closure` also all that it came from, to one file; every byte is hashed."""
        from artifacts import transfer

        record = self.resolve(text)
        transfer.export(self._side(), transfer.closure(self._records, [record]) if closure else [record], path, tell)
        return record

    def import_(self, path: Path, tell: Tell | None = None) -> Transferred:
        """Store what an exported file holds; BadArchive if any byte of it is not what it was."""
        from artifacts import transfer

        self._mark_format()
        imported = transfer.import_file(self._side(), path, tell)
        self.leave_index()
        return imported

    def push(
        self,
        to: Store,
        texts: Iterable[str],
        closure: bool = True,
        on_object: Callable[[File], None] | None = None,
        tell: Tell | None = None,
    ) -> Transferred:
        """Copy artifacts, and all that they came from, to another store; goes on where an earlier try stopped.

        What is given by name gets that name there too.
        """
        from artifacts import transfer

        texts = list(texts)
        roots = [self.resolve(text) for text in texts]
        to._mark_format()
        records = transfer.closure(self._records, roots) if closure else roots
        transferred = transfer.copy(self._side(), to._side(), records, on_object, tell)
        for text, record in zip(texts, roots, strict=True):
            if text.count("/") == 3:
                name, _ = parse_name(text)
                to.assign_name(name.recipe, name.scale, name.seed, name.stage, name.part, record.key)
        to.leave_index()
        return transferred

    def pull(
        self,
        source: Store,
        texts: Iterable[str],
        closure: bool = True,
        on_object: Callable[[File], None] | None = None,
        tell: Tell | None = None,
    ) -> Transferred:
        """Copy artifacts, and all that they came from, from another store; see `push`."""
        return source.push(self, texts, closure, on_object, tell)

    def _side(self) -> Side:
        from artifacts.transfer import Side

        return Side(self._backend, self._objects, self._records)

    def _make_way(self, stage: str, key: str) -> None:
        """A key that is taken by what nobody may use is free."""
        try:
            there = self._records.get(stage, key)
        except DamagedArtifact:
            self.quarantine(stage, key)
            return
        reason = self.rejection(there) if there is not None else None
        if there is not None and reason is not None:
            self._rejections.set_aside(there, reason)

    # Format

    def _check_format(self) -> None:
        try:
            document, _ = read_document(self._backend, "store.json")
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
        if self._marked:
            return
        raw, _ = dump_document({"format": FORMAT})
        if self._backend.create("store.json", raw) and self._backend.create("store.json", raw):
            raise StoreUnavailable(
                f"a store must be able to make a file only if there is none; {self.url} made one twice (some object "
                "stores ignore `If-None-Match`); choose another store with --store"
            )
        self._marked = True


def _default_cache(backend: Backend) -> Path:
    if isinstance(backend, LocalBackend):
        return backend.path(f"cache/{host_name()}")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fairway" / hashlib.sha256(backend.url.encode()).hexdigest()[:16]
