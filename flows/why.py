"""Why a key is not what it was: field by field, module by module, with the lines that changed."""

from __future__ import annotations

import ast
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Protocol

from artifacts.errors import StoreError
from artifacts.record import Record
from configs.introduced import introduced
from flows.closure import is_config_module
from flows.identity import Components
from flows.leaves import leaves
from flows.normal import Statement, statements

Source = Mapping[str, str]  # path relative to the root -> text
ReadSource = Callable[[], Source | None]  # called only when a module changed; None: the source is gone
_ABSENT = "(none)"


@dataclass(frozen=True)
class Lines:
    """Lines of the newer source that differ in meaning; `last < first` where lines were only taken away."""

    definition: str  # dotted name of the function or class around them; "" at the top of the module
    first: int
    last: int

    def __str__(self) -> str:
        if self.last < self.first:
            where = f"removed at line {self.first}"
        else:
            where = f"line {self.first}" if self.first == self.last else f"lines {self.first}-{self.last}"
        return f"{where} ({self.definition})" if self.definition else where


@dataclass(frozen=True)
class Change:
    """One component that differs."""

    component: str  # "config", "code", "inputs", "seed", "device", "libraries", "schema" or "repeat"
    name: str  # dotted field, path of the module, role, library; "" if the component is a single value
    old: Any
    new: Any
    lines: tuple[Lines, ...] = ()

    def __str__(self) -> str:
        if self.component == "code":
            if self.old is None or self.new is None:
                return f"code: {self.name} {'is new' if self.old is None else 'is gone'}"
            places = ", ".join(map(str, self.lines))
            return f"code: {self.name} {places or 'changed'}"
        if self.component == "inputs":
            return f"inputs: {self.name} changed"
        name = f" {self.name}" if self.name else ""
        return f"{self.component}:{name} {_show(self.old)} -> {_show(self.new)}"


def explain(
    old: Components, new: Components, read_old: ReadSource | None = None, read_new: ReadSource | None = None
) -> list[Change]:
    """What differs between two components of one stage, in the order in which people look for it.

    Inputs that `new` does not know yet are left out: they may turn out equal. Lines of code need both sources.
    """
    stage = new["stage"]
    found = [*_config(stage, new.get("part", ""), old["config"], new["config"])]
    found += _code(old["code"], new["code"], read_old, read_new)
    for role in sorted({*old["inputs"], *new["inputs"]}):
        was, now = old["inputs"].get(role), new["inputs"].get(role)
        if was != now and not (role in new["inputs"] and now is None):
            found.append(Change("inputs", role, was, now))
    known = introduced().get("device", {})
    found += _tables("device", {**known, **old.get("device", {})}, {**known, **new.get("device", {})})
    found += _tables("libraries", old["libraries"], new["libraries"])
    for component in ("seed", "repeat", "schema"):
        if old.get(component) != new.get(component):
            found.append(Change(component, "", old.get(component), new.get(component)))
    return found


def _config(stage: str, part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Fields that differ; a field that a slice leaves out has the value of its introduction."""
    prefix = f"{stage}.{part}." if part and stage == "evaluate" else f"{stage}."
    known = leaves(introduced().get(stage, {}))
    was, now = leaves(old), leaves(new)
    for path in sorted({*was, *now}):
        before, after = was.get(path, known.get(path)), now.get(path, known.get(path))
        if before != after:
            yield Change("config", prefix + path, before, after)


def _tables(component: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield Change(component, name, old.get(name), new.get(name))


def _code(
    old: Mapping[str, str], new: Mapping[str, str], read_old: ReadSource | None, read_new: ReadSource | None
) -> Iterator[Change]:
    changed = sorted(module for module in {*old, *new} if old.get(module) != new.get(module))
    before = (read_old() if changed and read_old else None) or {}
    after = (read_new() if changed and read_new else None) or {}
    for module in changed:
        path = _path(module, {*before, *after})
        lines = changed_lines(before[path], after[path], path) if path in before and path in after else ()
        yield Change("code", path, old.get(module), new.get(module), lines)


def _path(module: str, paths: set[str]) -> str:
    if "/" in module:  # a data file goes by its path
        return module
    base = module.replace(".", "/")
    return f"{base}/__init__.py" if f"{base}/__init__.py" in paths else f"{base}.py"


def changed_lines(old: str, new: str, path: str) -> tuple[Lines, ...]:
    """Where the normal form of `new` differs from that of `old`, in lines of `new`, one entry per definition."""
    if not path.endswith(".py"):
        return ()
    before, after = (list(statements(ast.parse(text), is_config=is_config_module(path))) for text in (old, new))
    matcher = SequenceMatcher(None, [s.text for s in before], [s.text for s in after], autojunk=False)
    found: list[Lines] = []
    for tag, old_first, old_end, first, end in matcher.get_opcodes():
        if tag == "equal":
            continue
        if first == end:  # only taken away: the place is where the next statement begins
            line = after[first].first_line if first < len(after) else len(new.splitlines())
            found += [Lines(definition, line, line - 1) for definition in _definitions(before[old_first:old_end])]
        for definition in _definitions(after[first:end]):
            inside = [s for s in after[first:end] if s.definition == definition]
            found.append(Lines(definition, inside[0].first_line, max(s.last_line for s in inside)))
    return tuple(found)


def _definitions(block: list[Statement]) -> list[str]:
    return list(dict.fromkeys(statement.definition for statement in block))


def _show(value: Any) -> str:
    return _ABSENT if value is None else json.dumps(value, ensure_ascii=False)


class ReadsObjects(Protocol):
    """The part of the store that keeps source closures."""

    def read_object(self, sha256: str) -> bytes:
        """The bytes of a small object."""
        ...


def published_source(record: Record, store: ReadsObjects) -> Source | None:
    """The source closure that made a record, as the flow published it; None if it is not there any more."""
    digest = record.provenance.get("source")
    if digest is None:
        return None
    try:
        content = store.read_object(digest)
    except StoreError:  # lines are a courtesy: without the source the modules are named all the same
        return None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        opened = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: handle.read().decode("utf-8", "replace") for name, handle in opened.items() if handle}
