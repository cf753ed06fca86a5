"""Says what is wrong with a recipe in the house's three parts: the rule, what came, what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

_RULES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "dataclass_type": "a table",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_pattern_mismatch": "text that matches {pattern}",
}
# What is said of a pattern that a person runs into by naming a file.
_PATTERNS = {r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$": "at most 64 letters, digits, - and _, without spaces"}
_NAMES_SHOWN = 12


def complaints(
    error: ValidationError, model: type[BaseModel], origins: Mapping[str, str], defaults: Mapping[str, Any]
) -> str:
    """Every error of a validation as a line with the field's path.

    Args:
        error: from `model`.
        model: the recipe's type.
        origins: dotted path -> the layer that wrote the value.
        defaults: the recipe's defaults as nested tables.
    """
    lines = [_complaint(dict(each), model, origins, defaults) for each in error.errors(include_url=False)]
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{len(lines)} fields of the recipe are wrong:", *(f"  {line}" for line in lines)])


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no name is near."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _complaint(
    error: dict[str, Any], model: type[BaseModel], origins: Mapping[str, str], defaults: Mapping[str, Any]
) -> str:
    kind, context = error["type"], error.get("ctx", {})
    names = [str(part) for part in error["loc"]]
    path = ".".join(names)
    by = _author(path, origins)
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"{path} is no field{by}{_advice(names, model)}"
    if kind == "missing":
        return f"{path} has no default and needs a value; write {path} = ... in the recipe"
    if kind == "value_error":
        return f"{path}: {context['error']}{by}" if path else str(context["error"])
    if names[-1] == "[key]":
        return f"a name is letters, digits, - and _; got {path.removesuffix('.[key]')!r}; choose another"
    rule = _RULES[kind].format(**context) if kind in _RULES else error["msg"]
    rule = _PATTERNS.get(context.get("pattern", ""), rule)
    advice = _default(names, defaults)
    if kind == "literal_error" and isinstance(error["input"], str):
        advice = nearest(error["input"], _choices(context["expected"])) or advice
    return f"{path} is {rule}; got {_got(error['input'])}{by}{advice}"


def _default(names: list[str], defaults: Any) -> str:
    for name in names:
        if not isinstance(defaults, dict) or name not in defaults:
            return ""
        defaults = defaults[name]
    return "" if isinstance(defaults, dict) else f"; its default is {json.dumps(defaults)}"


def _author(path: str, origins: Mapping[str, str]) -> str:
    """Which layers wrote this value, or something in this group."""
    found = {origins[path]: None} if path in origins else {}
    if not found:
        found = {origin: None for name, origin in origins.items() if name.startswith(f"{path}.")}
    return f" (from {', '.join(found)})" if found else ""


def _got(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text}, {kinds.get(type(value), type(value).__name__)}"


def _choices(expected: str) -> list[str]:
    return [part.strip(" '") for part in expected.replace(" or ", ", ").split(",")]


def _advice(names: list[str], model: type[BaseModel]) -> str:
    """The nearest valid name beside the unknown one, or the same name elsewhere in the recipe."""
    *parents, name = names
    group: Any = model
    for parent in parents:
        group = dict(_fields(group)).get(parent) or _value_type(group)
    here = [field for field, _ in _fields(group)]
    if near := nearest(name, here):
        return near
    if elsewhere := [path for path in _paths(model) if path.rsplit(".", 1)[-1] == name]:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    shown = ", ".join(here[:_NAMES_SHOWN]) + (", ..." if len(here) > _NAMES_SHOWN else "")
    return f"; {'.'.join(parents) or 'a recipe'} has {shown}"


def _fields(group: Any) -> list[tuple[str, Any]]:
    """Names and types of a group's fields; none for a leaf."""
    if isinstance(group, type) and issubclass(group, BaseModel):
        return [(name, field.annotation) for name, field in group.model_fields.items()]
    if isinstance(group, type) and is_dataclass(group):
        return [(name, hint) for name, hint in get_type_hints(group).items() if not name.startswith("__")]
    return []


def _value_type(group: Any) -> Any:
    """The type of the values of a `dict[str, X]`."""
    return get_args(group)[1] if get_origin(group) is dict else None


def _paths(group: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, kind in _fields(group):
        path = f"{prefix}{name}"
        found.append(path)
        found += _paths(_value_type(kind) or kind, f"{path}.*." if _value_type(kind) else f"{path}.")
    return found
