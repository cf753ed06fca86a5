"""Import of published token shards: verified copies under our names, split as the challenge names its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.shards import read_count
from stages.contract import Runtime, StageError
from stages.corpus.sources import SourceFile

Splits = dict[str, list[SourceFile]]


def split_by_name(files: list[SourceFile], val_files: list[SourceFile] | None) -> Splits:
    """{"train": ..., "val": ...}: by `_train_` and `_val_` in the names, unless val has a source of its own."""
    if val_files is not None:
        return {"train": files, "val": val_files}
    splits: Splits = {"train": [], "val": []}
    for file in files:
        found = [split for split in splits if f"_{split}_" in file.name]
        if len(found) != 1:
            raise StageError(
                f"published shards are told apart by _train_ or _val_ in their names; got {file.name}; rename it, "
                f"narrow the glob, or set corpus.val_source"
            )
        splits[found[0]].append(file)
    for split, chosen in splits.items():
        if not chosen:
            raise StageError(f"train and val both need shards; no name has _{split}_; widen the glob or set val_source")
    return splits


def import_shards(splits: Splits, folders: dict[str, Path], runtime: Runtime) -> dict[str, Any]:
    """Copy every shard and verify its header and size; returns the report. `tokenize` verifies the ids.

    Copies, not links: the store makes its files read-only, and the user's own must stay as they are.
    """
    total = sum(file.bytes for files in splits.values() for file in files)
    done = 0
    report: dict[str, Any] = {}
    for split, files in splits.items():
        tokens = 0
        for number, file in enumerate(files):
            target = folders[split] / f"{number:05d}.bin"
            file.fs.get_file(file.path, str(target))
            try:
                tokens += read_count(target)
            except ValueError as error:
                raise StageError(f"{file.name}: {error}") from error
            done += file.bytes
            runtime.report_progress(done, max(total, done, 1), "B", shards=number + 1)
        report[split] = {"tokens": tokens, "shards": len(files)}
    return report
