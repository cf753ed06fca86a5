"""From what a person types to a record: a name, `stage/key` or a key's first digits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from artifacts.backend import Backend
from artifacts.errors import AmbiguousKey, BadName, NotFound
from artifacts.names import Name, Names, parse_name
from artifacts.record import STAGE, Record
from artifacts.records import Records
from artifacts.verdicts import Rejections

_PREFIX = re.compile(r"(?:(?P<stage>[a-z][a-z0-9_]*)/)?(?P<prefix>[0-9a-f]{6,64})")


class Lookup:
    """Finds records, rejected ones too when a name points to one."""

    def __init__(self, backend: Backend, records: Records, names: Names, rejections: Rejections) -> None:
        self._url = backend.url
        self._records = records
        self._names = names
        self._rejections = rejections

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
            raise NotFound(f"{text} is a name whose record is gone from {self._url}; run the recipe again")
        return record

    def resolve_all(self, texts: Iterable[str]) -> list[tuple[str, str]]:
        """(stage, key) of artifacts, and of every artifact of a stage where a text is a stage's name; each once."""
        found: dict[tuple[str, str], None] = {}
        for text in texts:
            of_stage = list(self._records.index(text)) if STAGE.fullmatch(text) else []
            if not of_stage:
                record = self.resolve(text)
                of_stage = [(record.stage, record.key)]
            found |= dict.fromkeys(of_stage)
        return list(found)

    def latest(self, name: Name) -> Record | None:
        """The newest record that has this name and is still in use."""
        for version in reversed(self._names.versions(name)):
            target = self._names.whole_target(name, version)
            record = self._records.whole(target["stage"], target["key"]) if target else None
            if target and record is not None and record.id == target["record"]:
                return record
        return None

    def _target(self, target: Mapping[str, str]) -> Record | None:
        record = self._records.get(target["stage"], target["key"])
        if record is not None and record.id == target["record"]:
            return record
        return self._rejections.find(target["stage"], target["key"], target["record"])

    def _by_prefix(self, stage: str | None, prefix: str) -> Record:
        found = list(self._records.index(stage, prefix))
        rejected = {} if found else self._rejections.by_prefix(stage, prefix)
        if len(found or rejected) > 1:
            shown = ", ".join(f"{s}/{key[:16]}" for s, key in [*found, *rejected][:8])
            raise AmbiguousKey(
                f"a key's beginning must be that of one record; {prefix} begins {shown}; give more of it"
            )
        record = self._records.get(*found[0]) if found else next(iter(rejected.values()), None)
        if record is None:
            raise NotFound(f"no key in {self._url} begins with {prefix}; see `fairway artifacts ls`")
        return record
