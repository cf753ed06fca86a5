"""What makes a stage rerun: the components of a step's key, and the key.

    key = sha256(canonical JSON of {schema, stage, part?, code, config, inputs, seed?, device?, libraries, repeat?})

Never in it: paths, addresses, the store, worker counts, log settings, names of runs and recipes. The components stay in
the record, so that a key that changed can be explained (`why.py`).
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata  # noqa: TID251 - reads versions, imports nothing
from pathlib import Path
from typing import Any, Protocol

from artifacts.digest import canonical_json as canonical_text
from artifacts.record import Record
from configs.introduced import device_slice, stage_slice
from flows.closure import ROOT, Closure, SourceTree
from flows.river import Step
from stages.contract import StageError

SCHEMA = 1  # of the components; a new number makes every stage run again

Components = dict[str, Any]
Code = Mapping[str, str]  # module -> digest of its normal form


def canonical_json(value: Any) -> str:
    """One text for one value, as the store has it (`artifacts/digest.py`), which checks keys against their components.

    So 1 and 1.0 are one number, as are 1e-4 and 0.0001, and -0.0 is 0; true and 1 stay apart.

    Raises:
        TypeError: for anything but JSON's types with text keys; NaN and infinities are none of them.
    """
    return canonical_text(_plain(value, "$"))


def _plain(value: Any, path: str) -> Any:
    """The same in JSON's own types; the error names the place."""
    if value is None or isinstance(value, bool | str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"keys of an identity are text; {path} has {name!r} of type {type(name).__name__}")
        return {name: _plain(item, f"{path}.{name}") for name, item in value.items()}
    raise TypeError(
        f"an identity holds JSON values (null, true, numbers, text, lists, objects), because only they have one "
        f"canonical text; {path} is {value!r} of type {type(value).__name__}; convert it first"
    )


def components(step: Step, code: Code, libraries: Mapping[str, str], repeat: str | None = None) -> Components:
    """Everything that a step's result depends on. An input that is not known yet has the digest None.

    Args:
        step: from the river.
        code: the closure of the stage's process.
        libraries: name -> version, of `SPEC.libraries`.
        repeat: tells true repeats of one computation apart; None shares results.
    """
    found: Components = {
        "schema": SCHEMA,
        "stage": step.stage,
        "code": dict(code),
        "config": stage_slice(step.config),
        "inputs": {role: each.digest for role, each in step.inputs.items()},
        "libraries": dict(libraries),
    }
    if step.part and step.config.SPEC.mapped:
        found["part"] = step.part
    if step.seed is not None:
        found["seed"] = step.seed
    if step.device is not None:
        found["device"] = device_slice(step.device)
    if repeat is not None:
        found["repeat"] = repeat
    return found


def key_of(parts: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of components, as hex. Raises ValueError while an input is not known."""
    if unknown := unknown_roles(parts):
        raise ValueError(f"a key needs every input's digest; {', '.join(unknown)} of {parts['stage']} is not known yet")
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def unknown_roles(parts: Mapping[str, Any]) -> list[str]:
    """The input roles whose content is not known before a stage above has run."""
    return [role for role, digest in parts["inputs"].items() if digest is None]


@cache
def library_version(name: str) -> str:
    """The installed version of a distribution, without its local part and without importing it.

    `2.13.0+cpu` and `2.13.0+cu130` count as one version: which kind of device computes is a component of its own, and
    a laptop must be able to plan a run for a GPU machine. The full version is in the record's provenance.
    The name "python" stands for the language itself, as 3.11, for stages whose output depends on it.
    """
    if name == "python":
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError as error:
        raise StageError(
            f"a stage's libraries are installed; {name} is not; install requirements.lock (`make install`)"
        ) from error


class Identity:
    """Computes components for the steps of one run, from one state of the source tree.

    Call `save()` at the end, so that the next run parses changed files only.
    """

    def __init__(self, root: Path = ROOT, cache_file: Path | None = None) -> None:
        self._tree = SourceTree(root, cache_file)
        self._closures: dict[str, Closure] = {}

    @property
    def tree(self) -> SourceTree:
        """The source tree that is keyed."""
        return self._tree

    def closure(self, stage: str) -> Closure:
        """The modules that the stage's process can execute."""
        if stage not in self._closures:
            self._closures[stage] = self._tree.stage(stage)
        return self._closures[stage]

    def components(self, step: Step, repeat: str | None = None) -> Components:
        """The components of a step; see `components`."""
        libraries = {name: library_version(name) for name in step.config.SPEC.libraries}
        return components(step, self.closure(step.stage).digests, libraries, repeat)

    def source(self, stage: str) -> dict[str, str]:
        """The files of the stage's closure as they are now: path relative to the root -> text."""
        files = self.closure(stage).files
        return {path: file.read_text(encoding="utf-8", errors="replace") for path, file in files.items()}

    def save(self) -> None:
        """Remember the digests of the source files."""
        self._tree.save()


class Memory(Protocol):
    """What the identity asks of the store."""

    def get(self, stage: str, key: str) -> Record | None:
        """The record of a key."""
        ...

    def equivalents(self, stage: str, code: Code) -> Iterable[Code]:
        """Every other code that `fairway accept` holds to give equal bytes."""
        ...


def find(memory: Memory, parts: Components) -> Record | None:
    """The record of components: under their own key, or under that of a code that was accepted as equivalent."""
    stage = parts["stage"]
    record = memory.get(stage, key_of(parts))
    for code in memory.equivalents(stage, parts["code"]) if record is None else ():
        record = record or memory.get(stage, key_of({**parts, "code": dict(code)}))
    return record
