"""What the store can do without, and what it weighs.

Roots are runs, sets of runs, names, pins, held leases and attempts, and everything younger than the grace period. What
a root mentions is kept, and what that mentions, and so on: a mention is a sha256 anywhere in a document's text. So no
kind of document has to be known here, a field that is added later is followed too, and an error is one of keeping too
much.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from artifacts.backend import Backend, Entry
from artifacts.documents import read_all_whole
from artifacts.index import FOLDER, Index
from artifacts.lease import holders

GRACE_S = 24 * 3600.0  # far above the time that a publish, a push or an import takes
_MENTION = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Collected:
    """What went, or would go. `stages` counts the records by stage."""

    removed: tuple[Entry, ...]
    dry_run: bool
    stages: dict[str, int]

    @property
    def bytes(self) -> int:
        """Bytes of all that went."""
        return sum(entry.bytes for entry in self.removed)


def collect(
    backend: Backend,
    host: Backend | None = None,
    *,
    delete: bool = False,
    grace_s: float = GRACE_S,
    keep_last: int | None = None,
) -> Collected:
    """Find what no root needs and what crashes left, and remove it if `delete`.

    `keep_last` = N forgets all but the last N runs of each recipe and scale and the last N versions of each name, and
    the attempts that no remaining run mentions; sets and their runs stay, since a declared seed is never dropped. A
    grace period below an hour or so is safe only while nothing runs. `host` is this host's folder of a remote store,
    where killed downloads leave their halves.
    """
    # Candidates first, roots afterwards: what becomes a root in between is kept.
    tree = _tree(backend)
    sweep = _Sweep(backend, time.time() - grace_s, keep_last)
    roots, gone = sweep.roots()
    gone += sweep.unneeded(tree, sweep.needed(tree, roots))
    if delete:
        gone = [entry for entry in gone if sweep.remove(entry)]
        if tree[FOLDER]:
            _prune_index(backend, tree, gone)
    if host is not None:
        halves = [entry for entry in host.walk("tmp") if entry.modified_s < time.time() - grace_s]
        gone += [replace(e, path=f"{host.url}/{e.path}") for e in halves if not delete or host.delete(e.path)]
    stages = Counter(entry.path.split("/")[1] for entry in gone if entry.path.startswith("records/"))
    return Collected(tuple(gone), not delete, dict(stages))


def weigh(backend: Backend) -> dict[str, Any]:
    """Bytes and files by kind (top folder), and by stage.

    {"bytes", "kinds": {folder: {"files", "bytes"}}, "stages": {stage: {"records", "bytes", "own_bytes"}}}: a stage's
    `bytes` are those of its distinct objects, its `own_bytes` those that no other stage has.
    """
    tree = _tree(backend)
    kinds: dict[str, dict[str, int]] = {}
    for folder, entries in tree.items():
        kinds[folder] = {"files": len(entries), "bytes": sum(entry.bytes for entry in entries)}
    object_bytes = {_name(entry): entry.bytes for entry in tree["objects"]}
    holds: dict[str, set[str]] = defaultdict(set)  # object -> stages
    stages: dict[str, dict[str, int]] = {}
    texts = backend.read_listed(tree["records"])
    for entry, text in zip(tree["records"], texts, strict=True):
        stage = entry.path.split("/")[1]
        stages.setdefault(stage, {"records": 0, "bytes": 0, "own_bytes": 0})["records"] += 1
        for mention in _MENTION.findall(text or b""):
            if (sha256 := mention.decode()) in object_bytes:
                holds[sha256].add(stage)
    for sha256, sharers in holds.items():
        for stage in sharers:
            stages[stage]["bytes"] += object_bytes[sha256]
            stages[stage]["own_bytes"] += object_bytes[sha256] if len(sharers) == 1 else 0
    return {"bytes": sum(kind["bytes"] for kind in kinds.values()), "kinds": kinds, "stages": stages}


class _Sweep:
    def __init__(self, backend: Backend, old: float, keep_last: int | None) -> None:
        self._backend = backend
        self._old = old
        self._keep_last = keep_last

    def roots(self) -> tuple[list[Entry], list[Entry]]:
        """(documents to follow, runs and name versions to forget)."""
        groups: dict[tuple[str, ...], list[tuple[Any, Entry]]] = defaultdict(list)
        for entry in self._backend.walk("names"):
            folder, _, number = entry.path.removesuffix(".json").rpartition("/")
            groups[(folder,)].append((int(number) if number.isdecimal() else 0, entry))
        sets = list(self._backend.walk("sets"))
        declared = b"".join(filter(None, self._backend.read_listed(sets)))
        runs = list(self._backend.walk("runs"))
        for entry, whole in zip(runs, read_all_whole(self._backend, runs), strict=True):
            run = whole or {}
            if f'"{run.get("id")}"'.encode() in declared:
                sets.append(entry)
                continue
            group = ("runs", str(run.get("recipe")), str(run.get("scale")))
            groups[group].append(((str(run.get("started")), entry.path), entry))
        kept, forgotten = [*sets, *self._backend.walk("pins")], list[Entry]()
        for members in groups.values():
            ordered = [entry for _, entry in sorted(members, key=lambda member: member[0])]
            surplus = 0 if self._keep_last is None else max(0, len(ordered) - self._keep_last)
            forgotten += [entry for entry in ordered[:surplus] if entry.modified_s < self._old]
            kept += [entry for entry in ordered[:surplus] if entry.modified_s >= self._old]
            kept += ordered[surplus:]
        return kept, forgotten

    def needed(self, tree: dict[str, list[Entry]], roots: Iterable[Entry]) -> set[str]:
        """Every digest that roots, young records, held leases and attempts lead to."""
        records: dict[str, list[Entry]] = defaultdict(list)
        for entry in tree["records"]:
            records[_name(entry)].append(entry)
        needed = {_name(entry) for entry in tree["records"] if entry.modified_s >= self._old}
        needed |= set(holders(self._backend))
        if self._keep_last is None:
            needed |= {_key(entry) for entry in tree["attempts"]}
        needed |= _mentions(self._backend, list(roots))
        new = needed
        while new:  # a wave at a time, since each read waits for the store
            named = [entry for digest in new for entry in records.pop(digest, ())]
            new = _mentions(self._backend, named) - needed
            needed |= new
        return needed

    def unneeded(self, tree: dict[str, list[Entry]], needed: set[str]) -> Iterator[Entry]:
        """Everything old that nothing leads to, records before objects."""
        held = holders(self._backend)
        finished = {_name(entry) for entry in tree["records"]}
        beating = {_key(entry) for entry in tree["attempts"] if entry.modified_s >= self._old}
        stored = {_name(entry) for entry in tree["objects"] if _name(entry) in needed}
        wanted: dict[str, Callable[[Entry], bool]] = {
            "records": lambda entry: _name(entry) in needed,
            "objects": lambda entry: _name(entry) in needed,
            "tmp": lambda entry: False,
            "quarantined": lambda entry: not entry.path.startswith("quarantined/objects/"),
            "leases": lambda entry: _key(entry) in held,
            "attempts": lambda entry: _key(entry) in beating | needed - finished,
            "cache": lambda entry: "/stamps/" not in entry.path or _name(entry) in stored,
        }
        for folder, is_wanted in wanted.items():
            yield from (entry for entry in tree[folder] if entry.modified_s < self._old and not is_wanted(entry))

    def remove(self, entry: Entry) -> bool:
        """Remove a file unless it was written again since it was listed."""
        now = self._backend.entry(entry.path)
        return now is not None and now.modified_s == entry.modified_s and self._backend.delete(entry.path)


def _tree(backend: Backend) -> dict[str, list[Entry]]:
    """Every file of the store, by top folder, in one walk."""
    tree: dict[str, list[Entry]] = defaultdict(list)
    for entry in backend.walk(""):
        tree[entry.path.split("/")[0]].append(entry)
    return tree


def _prune_index(backend: Backend, tree: dict[str, list[Entry]], gone: Sequence[Entry]) -> None:
    """Leave of the index one file, with what is still there."""
    index = Index(backend)
    index.read([entry.path for entry in tree[FOLDER]])
    removed = {entry.path for entry in gone}
    index.merge({(e.path, e.tag) for entries in tree.values() for e in entries if e.path not in removed})


def _mentions(backend: Backend, entries: Sequence[Entry]) -> set[str]:
    """Every digest in the documents' texts; those that have gone since they were listed mention nothing."""
    texts = backend.read_listed(entries)
    return {match.decode() for text in texts if text is not None for match in _MENTION.findall(text)}


def _name(entry: Entry) -> str:
    """The digest in a record's or object's file name."""
    return entry.path.rsplit("/", 1)[-1].removesuffix(".json")


def _key(entry: Entry) -> str:
    """The key in `leases/<key>.lock`, `leases/<key>/...` and `attempts/<key>/...`."""
    return entry.path.split("/")[1].removesuffix(".lock")
