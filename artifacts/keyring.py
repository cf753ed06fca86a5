"""Credentials of stores, in this process's memory and nowhere else.

An address is recorded, logged and passed on; what opens it must not be. So whoever has credentials puts them on the
ring under the store's address, and the driver of that address finds them there. An address without any is left to what
its driver finds by itself: the environment, a configuration file, the machine's role.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import StoreRefused

# Options of a driver that say where and not who; messages may show them.
OPEN = ("endpoint_url", "client_kwargs", "project", "account_name")
_LEAST = 8  # shorter values would be found inside ordinary words


@dataclass(frozen=True)
class Credentials:
    """What a driver needs beside the address. `name` says where they came from, and is all that is ever shown."""

    name: str
    options: Mapping[str, Any] = field(repr=False)  # keyword arguments of the fsspec driver

    def hide(self, text: str) -> str:
        """The text with every secret value in it replaced by `***`."""
        secret = {name: value for name, value in self.options.items() if name not in OPEN}
        for value in sorted(_texts(secret), key=len, reverse=True):
            if len(value) >= _LEAST:
                text = text.replace(value, "***")
        return text

    def dumps(self) -> bytes:
        """For a pipe to a process that opens the same store."""
        return json.dumps({"name": self.name, "options": dict(self.options)}).encode()

    @classmethod
    def loads(cls, raw: bytes) -> Credentials:
        """What came out of the pipe; StoreRefused if nothing did."""
        if not raw:
            raise StoreRefused("credentials come through a pipe from whoever started this process; nothing came")
        found = json.loads(raw)
        return cls(found["name"], found["options"])


_RING: dict[str, Credentials] = {}


def hang(url: str, credentials: Credentials) -> None:
    """Use these credentials for the store at `url` from now on, in this process."""
    _RING[url.rstrip("/")] = credentials


def held(url: str) -> Credentials | None:
    """The credentials for the store at `url`, if this process was given any."""
    return _RING.get(url.rstrip("/"))


def names() -> list[str]:
    """Where the credentials that this process was given came from."""
    return sorted({each.name for each in _RING.values()})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        yield from (line for line in value.splitlines() if line != value)  # a message may quote a line of a key
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
