"""Documents or published shards from outside -> `train` and `val`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.contract import Runtime, fresh_role
from stages.corpus.build import build
from stages.corpus.config import EMBEDDED, Config
from stages.corpus.published import import_shards, split_by_name
from stages.corpus.sources import list_files


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write both splits. `inputs` is not read: a source lies outside, and its fingerprint is this stage's input."""
    folders = {split: fresh_role(out, split) for split in ("train", "val")}
    if config.source != EMBEDDED:
        files = list_files(config.source, config.format)
        if files[0].kind == "shards":
            val_files = list_files(config.val_source, "shards") if config.val_source else None
            return import_shards(split_by_name(files, val_files), folders, runtime)
    return build(config, folders, runtime)
