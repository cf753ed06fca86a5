"""Where outside inputs lie: any fsspec URL, and the clear errors that belong to them."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from stages.contract import StageError

# What brings the driver of a protocol that is not installed.
DRIVERS = {
    "hf": "fairway[hf]",
    "http": "fsspec[http]",
    "https": "fsspec[http]",
    "s3": "fairway[s3]",
    "s3a": "fairway[s3]",
    "gs": "fairway[gcs]",
    "gcs": "fairway[gcs]",
    "az": "fairway[azure]",
    "abfs": "fairway[azure]",
    "abfss": "fairway[azure]",
}

_SECRET = re.compile(
    r"(password|passwd|pwd|secret|token|credential|signature|apikey|accesskey|accountkey|awsaccesskeyid)|^(sig|sas|auth)$"
)


def refuse_credentials(url: str) -> str:
    """The same URL, or StageError if it carries a password, token or signature; the message does not repeat it."""
    for link in url.split("::"):  # fsspec chains filesystems with "::"
        parts = urlsplit(link)
        user, at, _ = parts.netloc.rpartition("@")
        found = [name for name, _ in parse_qsl(parts.query) if _SECRET.search(re.sub(r"[^a-z]", "", name.lower()))]
        # Azure writes container@account and GitHub org:repo@sha, so a name before "@" is a secret on HTTP only.
        if at and parts.scheme != "github" and (":" in user or parts.scheme in ("http", "https")):
            found.append("user information before the host")
        if found:
            raise StageError(
                f"a URL is recorded, so it must carry no credentials; one at {parts.scheme}://{parts.hostname} has "
                f"{found[0]}; give it without and let the driver find them (environment, configuration or role)"
            )
    return url


def absolute(url: str) -> str:
    """The same URL; a relative local path becomes absolute, because stages run in another folder than the user's."""
    return url if "://" in url or not url else os.path.abspath(os.path.expanduser(url))


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL or local path, and the path inside it. Raises StageError."""
    import fsspec.core  # here, so that reading a configuration stays fast

    protocol = refuse_credentials(url).split("://")[0].split("::")[-1] if "://" in url else "file"
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        driver = DRIVERS.get(protocol)
        how = f"pip install '{driver}'" if driver else str(error)
        raise StageError(f"{protocol}:// needs a driver that is not installed; got {url}; run: {how}") from error
    except ValueError as error:
        raise StageError(f"a source is a local path or an fsspec URL; got {url}: {error}; mend the URL") from error
