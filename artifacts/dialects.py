"""What drivers of object stores call the facts in their listings."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
_TAGS = ("generation", "ETag", "etag")


def tag_of(info: dict[str, Any]) -> str:
    """What tells one state of a file from another; "" if nothing does.

    Its MD5 in hexadecimal digits where the listing has that, since a writer knows it beforehand and a reader can check
    it: S3 gives it as the ETag of what was put in one part. Else whatever changes with every write.
    """
    if md5 := info.get("md5Hash"):  # Google's
        return base64.b64decode(md5).hex()
    if md5 := (info.get("content_settings") or {}).get("content_md5"):  # Azure's
        return bytes(md5).hex()
    return str(next((info[name] for name in _TAGS if info.get(name)), "")).strip('"')


def modified_s(info: dict[str, Any]) -> float:
    """Seconds since 1970 of a listing's time."""
    value = next((info[name] for name in _TIMES if info.get(name) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)
