"""What people said about results: code changes that they accept as equivalent, artifacts that they reject, pins.

accepted/<stage>/<old>-<new>.json        two sets of code digests give the same results (16 digits of each set's digest)
rejected/<stage>/<key>/<record>.json     a rejected record, whole, with the reason; its place in records/ is free again
pins/<key>.json                          a record that `gc` keeps
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from artifacts.backend import Backend
from artifacts.digest import digest_json
from artifacts.documents import dump_document, read_document, read_folder, read_if_whole
from artifacts.errors import BadName, NotFound
from artifacts.record import Record, check_key, check_stage, record_from_json, record_to_json
from artifacts.records import Records

Code = Mapping[str, str]  # module -> digest
_MARKER = re.compile(r"rejected/([a-z][a-z0-9_]*)/([0-9a-f]{64})/([0-9a-f]{64})\.json")
_FRESH_S = 2.0  # for how long a listing is believed, so that a plan lists once


@dataclass(frozen=True)
class Acceptance:
    """Somebody's word, with evidence, that two states of a stage's code give the same bytes."""

    stage: str
    old: dict[str, str]
    new: dict[str, str]
    reason: str
    who: str = ""
    at: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


class Acceptances:
    """The acceptances of a store."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._listed: list[Acceptance] = []
        self._listed_s = float("-inf")

    def add(self, acceptance: Acceptance) -> Acceptance:
        """Keep an acceptance; the one that is there already, if there is one for these two states."""
        if not acceptance.reason.strip():
            raise BadName("an acceptance says why; got no reason; give one with --reason")
        check_stage(acceptance.stage)
        names = [digest_json(code)[:16] for code in (acceptance.old, acceptance.new)]
        path = f"accepted/{acceptance.stage}/{names[0]}-{names[1]}.json"
        self._backend.create(path, dump_document({**asdict(acceptance), "at": _now()})[0])
        self._listed_s = float("-inf")
        return Acceptance(**read_document(self._backend, path)[0])

    def of(self, stage: str | None = None) -> list[Acceptance]:
        """The acceptances of a stage, or all."""
        if time.monotonic() - self._listed_s > _FRESH_S:
            self._listed = [Acceptance(**document) for document in read_folder(self._backend, "accepted")]
            self._listed_s = time.monotonic()
        return [each for each in self._listed if stage in (None, each.stage)]

    def equivalents(self, stage: str, code: Code) -> list[dict[str, str]]:
        """Every other state of the code that acceptances, in either direction and in chains, hold equal to this one."""
        linked: dict[str, list[dict[str, str]]] = defaultdict(list)
        for acceptance in self.of(stage):
            linked[digest_json(acceptance.old)].append(acceptance.new)
            linked[digest_json(acceptance.new)].append(acceptance.old)
        found = {digest_json(dict(code)): dict(code)}
        queue = list(found)
        while queue:
            for other in linked[queue.pop()]:
                name = digest_json(other)
                if name not in found:
                    found[name] = other
                    queue.append(name)
        return list(found.values())[1:]


class Rejections:
    """The rejections of a store, and what they reach along the lineage."""

    def __init__(self, backend: Backend, records: Records) -> None:
        self._backend = backend
        self._records = records
        self._listed: set[tuple[str, str, str]] = set()
        self._listed_s = float("-inf")

    def reject(self, root: Record, reason: str, who: str = "") -> list[Record]:
        """Set a record and all that came from it aside, so that their stages run again; what was set aside, root first.

        Whatever a crash leaves undone, `rejection` reports all the same and a second call finishes.
        """
        if not reason.strip():
            raise BadName("a rejection says why; got no reason; give one with --reason")
        # The root first: what is published from it from now on is seen to be tainted by its own publisher.
        self.set_aside(root, reason, who)
        descendants = self._descendants(root)
        for record in descendants:
            self.set_aside(record, f"made from {root.label} {root.key[:12]}, rejected: {reason}", who)
        return [root, *descendants]

    def set_aside(self, record: Record, because: str, who: str = "") -> None:
        """Keep the record and the reason under `rejected/`, then free its key."""
        verdict = {"reason": because, "who": who, "at": _now(), "record": record_to_json(record)}
        self._backend.create(_marker(record.stage, record.key, record.id), dump_document(verdict)[0])
        self._listed_s = float("-inf")
        self._records.remove(record)

    def of(self, record: Record, fresh: bool = False) -> str | None:
        """Why a record must not be used: its own rejection or that of anything it came from. None if there is none.

        `fresh` lists the rejections again, however recent the last listing is.
        """
        if fresh:
            self._listed_s = float("-inf")
        if not self._markers():
            return None
        return self._of(record.stage, record.key, record.id, record, set())

    def find(self, stage: str, key: str, record_id: str) -> Record | None:
        """A rejected record."""
        found = self._read(stage, key, record_id)
        return None if found is None else found[1]

    def all(self) -> list[tuple[Record, str]]:
        """(record, reason) of everything that was rejected."""
        found = (self._read(*marker) for marker in sorted(self._markers()))
        return [(record, reason) for reason, record in filter(None, found)]

    def by_prefix(self, stage: str | None, prefix: str) -> dict[tuple[str, str], Record]:
        """{(stage, key): its newest rejected record} of keys that begin with `prefix`."""
        found: dict[tuple[str, str], Record] = {}
        for its_stage, key, record_id in self._markers():
            record = (
                self.find(its_stage, key, record_id) if key.startswith(prefix) and stage in (None, its_stage) else None
            )
            if record is not None:
                found[its_stage, key] = max(record, found.get((its_stage, key), record), key=_published)
        return found

    def _of(self, stage: str, key: str, record_id: str, record: Record | None, seen: set[str]) -> str | None:
        seen.add(record_id)
        if (stage, key, record_id) in self._markers():
            verdict = self._read(stage, key, record_id)
            return verdict[0] if verdict else "rejected, but the reason's text is damaged"
        if record is None:
            current = self._records.whole(stage, key)
            record = current if current is not None and current.id == record_id else None
        for producer in record.producers() if record else ():
            if producer["record"] in seen:
                continue
            reason = self._of(producer["stage"], producer["key"], producer["record"], None, seen)
            if reason is not None:
                return f"made from {producer['stage']} {producer['key'][:12]}, rejected: {reason}"
        return None

    def _read(self, stage: str, key: str, record_id: str) -> tuple[str, Record] | None:
        path = _marker(stage, key, record_id)
        document = read_if_whole(self._backend, path)
        if document is None:
            return None
        return document["reason"], record_from_json(document["record"], record_id)

    def _markers(self) -> set[tuple[str, str, str]]:
        if time.monotonic() - self._listed_s > _FRESH_S:
            found = (_MARKER.fullmatch(entry.path) for entry in self._backend.walk("rejected"))
            self._listed = {(match[1], match[2], match[3]) for match in found if match}
            self._listed_s = time.monotonic()
        return self._listed

    def _descendants(self, root: Record) -> list[Record]:
        """Everything now in records/ that came from this key, nearest first.

        By key and not by record: what was made from an earlier result of the same key is no more to be trusted.
        """
        consumers: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for stage, key in self._records.index():
            record = self._records.whole(stage, key)
            for producer in record.producers() if record else ():
                consumers[producer["stage"], producer["key"]].append(record)  # type: ignore[arg-type]
        found: dict[str, Record] = {}
        queue = [root]
        while queue:
            made = queue.pop(0)
            for consumer in consumers[made.stage, made.key]:
                if consumer.id not in found:
                    found[consumer.id] = consumer
                    queue.append(consumer)
        return list(found.values())


class Pins:
    """Records that `gc` must keep."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def add(self, record: Record, reason: str = "", who: str = "") -> None:
        """Pin a record; pinning it again replaces the reason."""
        pin = {
            "stage": record.stage,
            "part": record.part,
            "key": record.key,
            "reason": reason,
            "who": who,
            "at": _now(),
        }
        self._backend.write(_pin(record.key), dump_document(pin)[0])

    def remove(self, key: str) -> None:
        """Take a pin away."""
        if not self._backend.delete(_pin(key)):
            raise NotFound(f"only a pin that is there can be removed; {key} has none; see `fairway artifacts pin`")

    def all(self) -> list[dict[str, Any]]:
        """Every pin."""
        return read_folder(self._backend, "pins")


def _marker(stage: str, key: str, record_id: str) -> str:
    return f"rejected/{check_stage(stage)}/{check_key(key)}/{check_key(record_id)}.json"


def _pin(key: str) -> str:
    return f"pins/{check_key(key)}.json"


def _published(record: Record) -> str:
    return str(record.provenance.get("published"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
