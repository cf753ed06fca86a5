"""What `bundle` packs: the network, the formats and the hot modules of the stages that the submission needs.

Not packed: `config.py`, `stage.py` and `__main__.py` of a stage, which need pydantic or a job file. So that this holds,
hot modules import their configuration under `if TYPE_CHECKING` only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from artifacts.record import File
from flows.closure import ROOT, SourceTree
from flows.river import Input
from stages.contract import StageError

ROOMS = ("stages/train", "stages/average", "stages/quantize", "stages/compress", "stages/evaluate")
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
    for module in roots(root):
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


def roots(root: Path = ROOT) -> list[str]:
    """The modules from which the packed closure starts: all of `model`, and the hot modules of `ROOMS`."""
    paths = [*(root / "model").glob("*.py"), *(path for room in ROOMS for path in (root / room).glob("*.py"))]
    hot = [p for p in paths if p.name not in LEFT_OUT or (p.parent.name == "model" and p.name == "config.py")]
    return sorted(".".join(path.relative_to(root).with_suffix("").parts) for path in hot)


def _file(path: str, file: Path) -> File:
    content = file.read_bytes()
    return File(path, hashlib.sha256(content).hexdigest(), len(content))
