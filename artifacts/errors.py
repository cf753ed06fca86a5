"""What can go wrong with the store, and what to do about it. Every text says the rule, what came, what to do.

StoreError
├── StoreUnavailable     the place cannot be reached, or its file system lacks what the store needs
│   ├── StoreRefused     our credentials are wrong, missing, or do not reach so far; or our clock is wrong
│   ├── StoreUnsupported no store can be there: its file system lacks what one needs
│   ├── StoreReadOnly    writing is refused
│   └── StoreFull        no space is left
├── StoreFormat          made by a newer Fairway
├── UnsafeURL            an address that carries a secret
├── BadName              a key, name, path or document that breaks the store's rules
├── NotFound             nothing has this name or key
├── AmbiguousKey         a key prefix that several records share
├── DamagedArtifact      bytes that are missing or are not what they were
├── BadArchive           an exported file that cannot be imported
├── LeaseTimeout         somebody else held the lease for too long
└── LeaseCancelled       the waiting for a lease was stopped
"""

from __future__ import annotations

__all__ = [
    "AmbiguousKey",
    "BadArchive",
    "BadName",
    "DamagedArtifact",
    "LeaseCancelled",
    "LeaseTimeout",
    "NotFound",
    "StoreError",
    "StoreFormat",
    "StoreFull",
    "StoreReadOnly",
    "StoreRefused",
    "StoreUnavailable",
    "StoreUnsupported",
    "UnsafeURL",
]


class StoreError(Exception):
    """The base of all: catch this one to catch whatever the store can raise."""


class StoreUnavailable(StoreError):
    """The place cannot be reached, or its file system lacks what the store needs."""


class StoreRefused(StoreUnavailable):
    """The place knows us not, or not well enough: credentials are wrong, missing, or do not reach so far."""


class StoreUnsupported(StoreUnavailable):
    """No store can be at such an address, today or tomorrow, from this machine or another."""


class StoreReadOnly(StoreUnavailable):
    """Writing is refused by the place."""


class StoreFull(StoreUnavailable):
    """No space is left."""


class StoreFormat(StoreError):
    """The store was made by a newer Fairway, so its documents cannot be trusted to mean what they seem to."""


class UnsafeURL(StoreError):
    """An address that carries a password, token or signature; addresses end up in records and logs."""


class BadName(StoreError):
    """A key, name, path or document that breaks the store's rules."""


class NotFound(StoreError):
    """Nothing in the store has this name or key."""


class AmbiguousKey(StoreError):
    """A key prefix that several records share; the text lists them."""


class DamagedArtifact(StoreError):
    """Bytes that are missing or are not what they were. `found` is None for what is not there at all.

    `sha256` is the digest that an object should have, "" when it is a document that is damaged.
    """

    def __init__(self, path: str, expected: str, found: str | None, where: str = "", sha256: str = "") -> None:
        self.path = path
        self.expected = expected
        self.found = found
        self.where = where
        self.sha256 = sha256
        what = "is not there" if found is None else f"is damaged: found {found}"
        place = f" at {where}" if where else ""
        super().__init__(
            f"stored bytes never change, but {path}{place} {what}, expected {expected}; "
            "the store can set the artifact aside (quarantine), after which its stage runs again"
        )


class BadArchive(StoreError):
    """An exported file that is truncated, altered or not an export at all."""


class LeaseTimeout(StoreError):
    """Somebody else held the lease for longer than the caller wanted to wait."""


class LeaseCancelled(StoreError):
    """The caller stopped the waiting for a lease."""
