"""Secrets stay out: addresses that carry one are refused, and command lines are redacted before they are recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from artifacts.errors import UnsafeURL

_WORDS = (
    "password|passwd|pwd|secret|token|credentials?|signature|sig|sas|auth|authorization|"
    "api[_-]?key|access[_-]?key(?:[_-]?id)?|account[_-]?key|secret[_-]?key|awsaccesskeyid"
)
_SECRET = rf"(?:[a-z0-9]+[_-])*(?:{_WORDS})"
_IN_QUERY = re.compile(rf"([?&;]{_SECRET}=)[^&;#\s\"']+", re.IGNORECASE)
# `container@account` is how Azure writes an address, so a name before "@" is a secret only after a colon or over HTTP.
_IN_USERINFO = re.compile(
    r"((?:https?://)|(?:[a-z][a-z0-9+.-]*://(?=[^/\s\"'@]*:)))[^/\s\"'@]*@(?=[^/\s\"'])", re.IGNORECASE
)
_FLAG = re.compile(rf"--?{_SECRET}", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"(-{{0,2}}(?:\w+\.)*{_SECRET}=).*", re.IGNORECASE | re.DOTALL)
_HIDDEN = "***"


def refuse_credentials(url: str) -> str:
    """The same address, or UnsafeURL if it carries a password, token or signature."""
    shown = redact_text(url)
    if shown != url:
        raise UnsafeURL(
            f"an address must not carry credentials, since addresses are recorded; got {shown}; give the address "
            "without them and let the driver find them (environment, configuration file or instance role)"
        )
    return url


def redact_text(text: str) -> str:
    """The text with every credential inside an address replaced by `***`."""
    text = _IN_USERINFO.sub(rf"\1{_HIDDEN}@", text)
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", text)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """A command line without its secrets: `--token X`, `--token=X`, `some.password=X` and addresses with either."""
    redacted: list[str] = []
    hide_next = False
    for argument in argv:
        if hide_next:
            redacted.append(_HIDDEN)
        elif (assigned := _ASSIGNMENT.fullmatch(argument)) is not None:
            redacted.append(assigned[1] + _HIDDEN)
        else:
            redacted.append(redact_text(argument))
        hide_next = not hide_next and _FLAG.fullmatch(argument) is not None
    return redacted


def redact(value: Any) -> Any:
    """A JSON value in which every text has gone through `redact_text`."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {name: redact(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return value
