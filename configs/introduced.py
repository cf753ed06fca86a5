"""The value that each field had when it was introduced: what a key may leave out.

A key must change when a field's default changes, and must not change when a field is added that is off. So a key holds
every field whose value differs from the one *at its introduction* (`introduced.json`, append-only), whatever the
default is today. A field that is not on file yet is left out while it is naturally off (False, 0, "", empty or null).

    python -m configs.introduced      # puts new fields on file; refuses to change what is there

Put a field on file in the commit that adds it (a test asks for it): on file, its default leaves the key again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from configs.recipe import DeviceConfig, Recipe
from stages.config import StageConfig

PATH = Path(__file__).with_name("introduced.json")
DATA_FILES = ("configs/introduced.json",)  # source that leaves this checkout takes it along


@cache
def introduced() -> dict[str, Any]:
    """Stage (or "device") -> field -> value at introduction, groups nested."""
    return json.loads(PATH.read_text(encoding="utf-8"))


def stage_slice(config: StageConfig) -> dict[str, Any]:
    """What of a stage's configuration belongs to its key: values other than the introduced ones, locations left out."""
    known = introduced().get(config.SPEC.name, {})
    return {name: value for name, value in changed(config, known).items() if name not in config.LOCATIONS}


def device_slice(device: DeviceConfig) -> dict[str, Any]:
    """What of a requested device belongs to a key."""
    return changed(device, introduced().get("device", {}))


def changed(group: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a group (model or dataclass) that differ from `known`, as JSON values."""
    found: dict[str, Any] = {}
    for name in field_names(group):
        value = getattr(group, name)
        was = known.get(name, {})
        if is_group(value) and isinstance(was, dict):
            if below := changed(value, was):
                found[name] = below
        elif name in known or not is_off(value):
            plain = _plain(value)
            if name not in known or not _same(plain, was):
                found[name] = plain
    return found


def resolved(group: Any) -> dict[str, Any]:
    """Every field of a group as JSON values, but for those that are off by default and off here.

    Whoever reads the result takes a missing field as off. So a new field that is off leaves it as it was.
    """
    found: dict[str, Any] = {}
    for name in field_names(group):
        value = getattr(group, name)
        if is_group(value):
            found[name] = resolved(value)
        elif not (is_off(value) and is_off(_default(group, name))):
            found[name] = _plain(value)
    return {name: value for name, value in found.items() if value != {}}


def _plain(value: Any) -> Any:
    """A leaf as a JSON value. Groups in a list or table have no place on file: what is off in them is left out."""
    if is_group(value):
        return resolved(value)
    if isinstance(value, Mapping):
        return {name: _plain(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return to_jsonable_python(value)


def _default(group: Any, name: str) -> Any:
    """A field's default today; True, which is on, for a field without one."""
    if isinstance(group, BaseModel):
        declared_field = type(group).model_fields[name]
        return True if declared_field.is_required() else declared_field.get_default(call_default_factory=True)
    declared_as = next(f for f in fields(group) if f.name == name)
    if declared_as.default_factory is not MISSING:
        return declared_as.default_factory()
    return True if declared_as.default is MISSING else declared_as.default


def is_group(value: object) -> bool:
    """Whether a value is a group of fields, rather than a leaf."""
    return isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type))


def field_names(group: Any) -> list[str]:
    """The declared fields of a group."""
    return list(type(group).model_fields) if isinstance(group, BaseModel) else [f.name for f in fields(group)]


def is_off(value: object) -> bool:
    """Whether a value says "nothing here" without anybody having to look it up."""
    return value is None or value is False or value in (0, "", (), [], {})


def _same(left: Any, right: Any) -> bool:
    # True == 1 in Python, but a switch is not a count.
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def declared() -> dict[str, Any]:
    """Today's defaults of every stage and of the device, in the shape of `introduced.json`."""
    recipe = Recipe.model_validate({"name": "declared", "evaluate": {"part": {}}})
    groups = {name: getattr(recipe, name) for name in field_names(recipe)}
    groups |= {"evaluate": recipe.evaluate["part"], "device": DeviceConfig()}
    return {
        name: to_jsonable_python(group)
        for name, group in groups.items()
        if isinstance(group, StageConfig | DeviceConfig)
    }


def put_on_file(known: Mapping[str, Any], today: Mapping[str, Any]) -> dict[str, Any]:
    """`known` with the fields of `today` that it lacks; what it has stays as it is."""
    added = dict(known)
    for name, value in today.items():
        if name not in added:
            added[name] = value
        elif isinstance(value, dict) and isinstance(added[name], dict):
            added[name] = put_on_file(added[name], value)
    return added


def main() -> int:
    """Add new fields to introduced.json."""
    known = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    text = json.dumps(put_on_file(known, declared()), indent=2, sort_keys=True) + "\n"
    if not PATH.exists() or PATH.read_text(encoding="utf-8") != text:
        PATH.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{PATH.name}: new fields put on file\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
