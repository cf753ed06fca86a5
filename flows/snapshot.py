"""The keyed code is the code that runs: a stage's process starts from a copy of its import closure and nothing else.

So a file edited while a run is going on cannot slip into a stage whose key was made before, and a module that the key
does not know cannot be imported at all. The copy goes into the store too, where `why` and `accept` find it again.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from artifacts.store import Store
from flows.closure import SourceTree
from flows.identity import Identity
from stages.contract import StageError


@dataclass(frozen=True)
class Snapshot:
    """A stage's source as it runs."""

    root: Path
    sha256: str  # of the archive in the store


def snapshot(identity: Identity, stage: str, root: Path, store: Store) -> Snapshot:
    """Copy the closure of `stage` to `root` and store it. StageError if it is no longer what was keyed."""
    closure = identity.closure(stage)
    for path, file in closure.files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if SourceTree(root).stage(stage).digests != closure.digests:
        raise StageError(
            f"a stage runs the code that its key was made of; {stage} was edited while the run went on; run it again"
        )
    archive = root.with_suffix(".tar")
    archive.write_bytes(pack(root, sorted(closure.files)))
    return Snapshot(root, store.put_file(archive).sha256)


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
