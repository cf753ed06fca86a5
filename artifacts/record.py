"""What the store remembers of one finished stage: its files by content, and why its key is what it is."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import BadName

_KEY = re.compile(r"[0-9a-f]{64}")
STAGE = re.compile(r"[a-z][a-z0-9_]*")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    inputs: dict[str, Any]  # {role: {"digest", "from": [producer, ...]}}, see `producer`; never part of the key
    provenance: dict[str, Any] = field(default_factory=dict)  # who, when, where, how long; never part of the key
    id: str = ""  # digest of the record's own text: tells two results of one key apart

    def role(self, name: str) -> tuple[File, ...]:
        """The files of one role, paths relative to its folder."""
        return tuple(f.below(name) for f in self.files if f.path.startswith(f"{name}/"))

    def role_digest(self, name: str) -> str:
        """The digest of one role's files."""
        return digest_files(self.role(name))

    @property
    def label(self) -> str:
        """`stage` or `stage[part]`, as people read it."""
        return f"{self.stage}[{self.part}]" if self.part else self.stage

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(f.bytes for f in self.files)

    def producer(self, role: str) -> dict[str, str]:
        """How a consumer names this record: `inputs = {"weights": {"digest": ..., "from": [r.producer("ema")]}}`."""
        return {"stage": self.stage, "part": self.part, "key": self.key, "record": self.id, "role": role}

    def producers(self) -> Iterator[dict[str, str]]:
        """Every record that this one was made from, over all roles."""
        for entry in self.inputs.values():
            yield from entry["from"]


def record_to_json(record: Record) -> dict[str, Any]:
    """The document of a record; its `id` is the document's own digest and not in it."""
    return {
        "format": 1,
        "stage": record.stage,
        "part": record.part,
        "key": record.key,
        "files": [{"path": f.path, "sha256": f.sha256, "bytes": f.bytes} for f in record.files],
        "components": record.components,
        "report": record.report,
        "inputs": record.inputs,
        "provenance": record.provenance,
    }


def record_from_json(document: Mapping[str, Any], digest: str) -> Record:
    """The record of a document, its paths and keys checked: a foreign record must not write outside a folder."""
    files = tuple(File(f["path"], f["sha256"], f["bytes"]) for f in document["files"])
    return Record(
        stage=check_stage(document["stage"]),
        part=check_part(document["part"]),
        key=check_key(document["key"]),
        files=check_files(files),
        components=document["components"],
        report=document["report"],
        inputs=check_inputs(document["inputs"]),
        provenance=document["provenance"],
        id=digest,
    )


def check_key(key: str) -> str:
    """A key or digest: 64 small hexadecimal digits."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise BadName(f"a key is 64 small hexadecimal digits (a sha256); got {key!r}; give the whole key")
    return key


def check_stage(stage: str) -> str:
    """A stage's name: a small Python identifier."""
    if not isinstance(stage, str) or not STAGE.fullmatch(stage):
        raise BadName(f"a stage's name is small letters, digits and _; got {stage!r}; use the folder's name in stages/")
    return stage


def check_word(word: str, what: str) -> str:
    """A recipe, scale, run or pin name: something that is a file name everywhere."""
    if not isinstance(word, str) or not _WORD.fullmatch(word) or len(word) > 200:
        raise BadName(
            f"a {what} is letters, digits, '.', '_' and '-', begins with a letter or digit and has at most 200; "
            f"got {word!r}; choose another"
        )
    return word


def check_part(part: str) -> str:
    """A part's name, or "" for a stage that is not mapped."""
    return check_word(part, "part") if part != "" else part


def check_files(files: tuple[File, ...]) -> tuple[File, ...]:
    """Files whose paths stay below a folder, each once."""
    for file in files:
        check_key(file.sha256)
        parts = file.path.split("/")
        if "\\" in file.path or "\0" in file.path or any(part in ("", ".", "..") for part in parts):
            raise BadName(f"a file's path is relative and stays in its folder; got {file.path!r}; rename the file")
    if len({file.path for file in files}) != len(files):
        paths = sorted(file.path for file in files)
        twice = next(a for a, b in itertools.pairwise(paths) if a == b)
        raise BadName(f"a set of files has each path once; {twice!r} came twice; give each file a name of its own")
    return files


def check_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """{role: {"digest": ..., "from": [producer, ...]}}: `reject`, `gc` and `export` follow it, so it must be right."""
    for role, entry in inputs.items():
        origin = entry.get("from") if isinstance(entry, Mapping) else None
        if not isinstance(origin, list | tuple) or not all(
            isinstance(producer, Mapping) and {"stage", "key", "record"} <= set(producer) for producer in origin
        ):
            raise BadName(
                'a record\'s inputs are {role: {"digest": ..., "from": [producer, ...]}} with producers as made by '
                f"Record.producer(role), none for what is outside the store; role {role!r} has {entry!r}"
            )
        for producer in origin:
            check_stage(producer["stage"])
            check_key(producer["key"])
            check_key(producer["record"])
    return dict(inputs)
