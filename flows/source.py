"""What `bundle` packs: the submitted program, and every module that it imports.

Not packed: `config.py`, `stage.py` and `__main__.py` of a stage, which need pydantic or a job file. So that this holds,
hot modules import their configuration under `if TYPE_CHECKING` only. A recipe's program is a part of these modules.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from artifacts.record import File
from flows.closure import ROOT, SourceTree
from flows.river import Input
from stages.contract import StageError

ROOTS = ("stages.submission",)
LEFT_OUT = {"config.py", "stage.py", "__main__.py", "__init__.py"}


def bundle_source(root: Path = ROOT, tree: SourceTree | None = None) -> Input:
    """The packed modules as an input of `bundle`.

    The digest is of their whole normal forms, so that a comment never packs anew, and error text and the fields of
    `model.config`, which are packed, do. `files` are as they are on disk, and the caller puts them into the store.

    Raises:
        StageError: a packed module needs one that must not be packed.
    """
    tree = tree or SourceTree(root)
    digests: dict[str, str] = {}
    files: dict[str, Path] = {}
    for module in ROOTS:
        closure = tree.closure(module)
        digests |= closure.whole
        files |= closure.files
        for path in closure.files:
            if path.startswith("stages/") and Path(path).name in LEFT_OUT - {"__init__.py"}:
                raise StageError(
                    f"packed modules import neither config.py nor stage.py of a stage; {module} needs {path}; "
                    "import it under `if TYPE_CHECKING`"
                )
    digest = hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
    packed = (path for path in files if files[path].name != "__init__.py")
    return Input(digest, tuple(_file(path, files[path]) for path in sorted(packed)))


def _file(path: str, file: Path) -> File:
    content = file.read_bytes()
    return File(path, hashlib.sha256(content).hexdigest(), len(content))
