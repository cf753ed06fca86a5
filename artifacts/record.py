"""What the store remembers of one finished stage: its files by content, and why its key is what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, order=True)
class File:
    """One file of an output: where it lies in the output, and what it holds."""

    path: str  # relative, with "/" on every system, starting with the role
    sha256: str
    bytes: int

    def below(self, role: str) -> File:
        """The same file with its path relative to the role's folder."""
        return File(self.path.removeprefix(f"{role}/"), self.sha256, self.bytes)


def digest_files(files: Iterable[File]) -> str:
    """The digest of a set of files: equal if and only if paths and contents are equal."""
    lines = [[f.path, f.sha256, f.bytes] for f in sorted(files)]
    return hashlib.sha256(json.dumps(lines, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """The proof that a stage is complete: it exists if and only if every file of it does."""

    stage: str
    part: str
    key: str
    files: tuple[File, ...]
    components: dict[str, Any]  # what the key was made of, so that a changed key can be explained
    report: dict[str, Any]
    inputs: dict[str, Any]  # role -> producers, for lineage; never part of the key
    provenance: dict[str, Any] = field(default_factory=dict)  # who, when, where, how long; never part of the key

    def role(self, name: str) -> tuple[File, ...]:
        """The files of one role, paths relative to its folder."""
        return tuple(f.below(name) for f in self.files if f.path.startswith(f"{name}/"))

    def role_digest(self, name: str) -> str:
        """The digest of one role's files."""
        return digest_files(self.role(name))
