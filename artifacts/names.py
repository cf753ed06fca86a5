"""Names that people can type, `recipe/scale/seed/stage[part]@n`, each version a document that points to one record.

    names/<recipe>/<scale>/<seed>/<stage>/<n>.json          an unmapped stage
    names/<recipe>/<scale>/<seed>/<stage>/<part>/<n>.json   one part of a mapped stage

Versions are numbered from 1 and never change. A record that has a number keeps it, so a fully cached run makes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from artifacts.backend import Backend, Entry
from artifacts.documents import dump_document, read_all_whole, read_document, read_if_whole
from artifacts.errors import BadName, NotFound
from artifacts.parallel import in_parallel
from artifacts.record import check_part, check_stage, check_word

_PATH = re.compile(r"names/([^/]+)/([^/]+)/(\d+)/([^/]+)/(?:([^/]+)/)?(\d+)\.json")
_LABEL = re.compile(r"(?P<stage>[^\[\]@]+)(?:\[(?P<part>[^\[\]@]+)\])?(?:@(?P<version>\d+))?")


@dataclass(frozen=True)
class Name:
    """A name without its version."""

    recipe: str
    scale: str
    seed: int
    stage: str
    part: str = ""

    def __post_init__(self) -> None:
        check_word(self.recipe, "recipe name")
        check_word(self.scale, "scale name")
        check_stage(self.stage)
        check_part(self.part)

    @property
    def folder(self) -> str:
        """Where its versions lie."""
        return "/".join(filter(None, ("names", self.recipe, self.scale, str(self.seed), self.stage, self.part)))

    def __str__(self) -> str:
        label = f"{self.stage}[{self.part}]" if self.part else self.stage
        return f"{self.recipe}/{self.scale}/{self.seed}/{label}"


def parse_name(text: str) -> tuple[Name, int | None]:
    """A name and its version, None for the latest."""
    words = text.split("/")
    label = _LABEL.fullmatch(words[-1])
    if len(words) != 4 or label is None or not words[2].isdecimal():
        raise BadName(f"a name is recipe/scale/seed/stage[part]@version, part and version optional; got {text!r}")
    name = Name(words[0], words[1], int(words[2]), label["stage"], label["part"] or "")
    return name, int(label["version"]) if label["version"] else None


class Names:
    """The names of a store."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def assign(self, name: Name, key: str, record_id: str) -> int:
        """The record's version under this name: the one that it has, or the next. Safe against other writers."""
        raw, _ = dump_document({"stage": name.stage, "part": name.part, "key": key, "record": record_id})
        checked = 0
        while True:
            versions = self.versions(name)
            fresh = [n for n in reversed(versions) if n > checked]
            # The latest first: it is the answer in every cached run.
            for group in (fresh[:1], fresh[1:]):
                for n, target in zip(group, in_parallel(lambda n: self.whole_target(name, n), group), strict=True):
                    if target is not None and target["record"] == record_id:
                        return n
            checked = max(versions, default=0)
            if self._backend.create(f"{name.folder}/{checked + 1}.json", raw):
                return checked + 1

    def versions(self, name: Name) -> list[int]:
        """Version numbers in order."""
        prefix = f"{name.folder}/"
        stems = (entry.path.removeprefix(prefix).removesuffix(".json") for entry in self._backend.walk(name.folder))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def target(self, name: Name, version: int | None = None) -> dict[str, Any]:
        """{"stage", "part", "key", "record"} of a version, None for the latest."""
        if version is None:
            version = max(self.versions(name), default=0)
        path = f"{name.folder}/{version}.json"
        try:
            return read_document(self._backend, path)[0]
        except FileNotFoundError:
            raise NotFound(
                f"there is no {name}{f'@{version}' if version else ''} in {self._backend.url}; "
                "see `fairway artifacts ls`"
            ) from None

    def whole_target(self, name: Name, version: int) -> dict[str, Any] | None:
        """The same for one version, None if it is damaged or gone."""
        return read_if_whole(self._backend, f"{name.folder}/{version}.json")

    def targets(self) -> list[tuple[str, dict[str, Any]]]:
        """("recipe/scale/seed/stage[part]@n", its target) of every version of every name that is whole."""
        listed = list(self._listed())
        targets = read_all_whole(self._backend, [entry for _, _, entry in listed])
        return [
            (f"{name}@{version}", target)
            for (name, version, _), target in zip(listed, targets, strict=True)
            if target is not None
        ]

    def all(self) -> Iterator[tuple[Name, int]]:
        """Every version of every name, in one walk."""
        for name, version, _ in self._listed():
            yield name, version

    def _listed(self) -> Iterator[tuple[Name, int, Entry]]:
        for entry in self._backend.walk("names"):
            if (found := _PATH.fullmatch(entry.path)) is not None:
                recipe, scale, seed, stage, part, version = found.groups()
                yield Name(recipe, scale, int(seed), stage, part or ""), int(version), entry
