"""Nested tables as one flat table, so that two of them can be compared and shown field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b.c": value} of a table of tables. An empty table within is a value; an empty one as a whole has none."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
