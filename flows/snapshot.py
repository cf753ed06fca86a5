"""The keyed code is the code that runs: stages start from a copy that is made when a run begins to work.

So a file that is edited while a run goes on cannot slip into a stage whose key was made before; the edit waits for the
next run. Each stage's process sees its own import closure and nothing else: a module that the key does not know cannot
be imported. That closure goes into the store too, where `why` and `accept` find it again.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from artifacts.digest import hash_file
from artifacts.record import File
from artifacts.store import Store
from flows.closure import SourceTree
from flows.identity import Identity
from stages.contract import StageError


@dataclass(frozen=True)
class Snapshot:
    """A stage's source as it runs."""

    root: Path
    sha256: str  # of the archive in the store


@dataclass(frozen=True)
class Packed:
    """Files of the source tree that a stage reads as its input."""

    tree: Path
    files: tuple[File, ...]


class Frozen:
    """A copy of the tree at one moment, stage by stage. StageError if a copy is no longer what was keyed."""

    def __init__(self, identity: Identity, root: Path, packed: Packed | None = None) -> None:
        self.identity, self.root = identity, root / "stages"
        self.packed = root / "packed"  # apart: the tree that is packed need not be the one that runs
        self._stages: set[str] = set()
        if packed is None:
            return
        for file in packed.files:
            copy_files([file.path], packed.tree, self.packed)
            if hash_file(self.packed / file.path) != (file.sha256, file.bytes):
                raise _edited(file.path)

    def add(self, stages: Iterable[str]) -> None:
        """Copy the closures of stages that are not there yet."""
        closures = {stage: self.identity.closure(stage) for stage in stages if stage not in self._stages}
        for closure in closures.values():
            copy_files(closure.files, self.identity.tree.root, self.root)
        copy = SourceTree(self.root, original=self.identity.tree)
        for stage, closure in closures.items():
            if copy.stage(stage).digests != closure.digests:
                raise _edited(stage)
        self._stages |= closures.keys()


def _edited(what: str) -> StageError:
    return StageError(f"a run sees one state of the source; {what} was edited while the run began; run it again")


def snapshot(frozen: Frozen, stage: str, root: Path, store: Store) -> Snapshot:
    """A stage's closure, from the frozen tree, in a folder of its own and in the store."""
    paths = sorted(frozen.identity.closure(stage).files)
    copy_files(paths, frozen.root, root)
    archive = root.with_suffix(".tar")
    archive.write_bytes(pack(root, paths))
    return Snapshot(root, store.put_file(archive).sha256)


def copy_files(paths: Iterable[str], source: Path, target: Path) -> None:
    """Copy files of one tree to another."""
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)


def pack(root: Path, paths: list[str]) -> bytes:
    """A tar of `paths` below `root`: names and contents only, so that equal source gives equal bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in paths:
            content = (root / path).read_bytes()
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()
