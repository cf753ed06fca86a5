"""A stage's configuration as the packed code sees it: plain values under the names of the fields, without pydantic.

A recipe travels in the bundle as JSON, from which what is off is left out (`configs.introduced.resolved`). Reading a
field that is not there gives what off is for it, so hot modules run on these settings as they do on their stage's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Settings:
    """One group of fields; lists are tuples, as pydantic has them."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update({name: plain(name, value) for name, value in fields.items()})

    def __getattr__(self, name: str) -> Any:
        """A field that is absent."""
        if name.startswith("__"):  # what Python asks every object for is no field
            raise AttributeError(name)
        if name == "live":  # the one property of a configuration that hot modules ask for: `QatConfig.live`
            return self.mode in {"ste", "soft"}
        return Settings({}) if name in GROUPS else OFF.get(name, 0)

    def model_dump(self, exclude: Any = ()) -> dict[str, Any]:
        """The fields that are there, as pydantic's method of this name."""
        return {name: value for name, value in self.__dict__.items() if name not in exclude}


GROUPS = ("attention", "mlp", "auxiliary", "second")  # of which every field may be off
TABLES = ("overrides", "constants")  # their keys are no fields
OFF: dict[str, Any] = {"adapt": (), "freeze": (), "seeds": (), "overrides": {}, "constants": {}}
"""What a field that is absent holds, where that is not 0 or False."""


def plain(name: str, value: Any) -> Any:
    """A JSON value as settings hold it."""
    if isinstance(value, dict):
        if name in TABLES:
            return {key: plain("", each) for key, each in value.items()}
        return Settings(value)
    return tuple(value) if isinstance(value, list) else value
