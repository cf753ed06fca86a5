"""Our modules and the recipe -> the one program that is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.bundle.config import Config
from stages.bundle.pack import pack
from stages.bundle.program import program
from stages.contract import Runtime, StageError, fresh_role


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `bundle/train_gpt.py`. `source` holds modules in the layout of their packages."""
    root = inputs["source"]
    paths = sorted(path for path in root.rglob("*.py") if path.name != "__init__.py")
    if not paths:
        raise StageError("bundle packs the modules of `source`; there are none; start from a source tree")
    modules: dict[str, str] = {}
    for path in paths:
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        modules[name] = path.read_text(encoding="utf-8")
    source = program(modules, config.recipe)
    target = fresh_role(out, "bundle") / "train_gpt.py"
    target.write_text(pack(source), encoding="ascii", newline="\n")
    return {
        "code_bytes": target.stat().st_size,
        "modules": len(modules),
        "source_bytes": sum(len(source.encode()) for source in modules.values()),
        "minified_bytes": len(source.encode()),
    }
