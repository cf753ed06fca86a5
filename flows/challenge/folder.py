"""A records folder of the challenge, read once: its files, claims, logs and code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.challenge.claims import Claims, read_claims
from flows.challenge.code import CODE, Script, read_script
from flows.challenge.log import Log, LogRun, read_log
from stages.contract import StageError

SCRIPT = "train_gpt.py"
_READ_LIMIT = 64_000_000  # bytes; a larger file is no log and no code
_SEED = re.compile(r"seed[_-]?(\d+)")
_MODEL = (".fwy", ".ptz", ".pt", ".pth", ".lzma", ".xz", ".zst", ".br", ".safetensors", ".npz")
_NO_LOG = ("requirements.txt", "readme.txt", "license.txt")


@dataclass(frozen=True)
class Evidence:
    """One run of one log, and the seed that it stands for."""

    log: Log
    run: LogRun
    seed: str | None  # by the file's name, else by what the log says


@dataclass(frozen=True)
class Folder:
    """See the module."""

    path: Path
    files: Mapping[str, int]  # path -> bytes
    record: bool  # in the record track; False: a non-record submission
    claims: Claims | None
    claims_error: str
    evidence: tuple[Evidence, ...]
    code: Mapping[str, bytes]  # every code file
    script: Script | None

    def of_seed(self, seed: str) -> list[Evidence]:
        """Everything that was logged for a seed."""
        return [each for each in self.evidence if each.seed == seed]

    @property
    def models(self) -> dict[str, int]:
        """The model files that are shipped, with their bytes."""
        return {path: size for path, size in self.files.items() if path.endswith(_MODEL)}

    @property
    def model_bytes(self) -> int | None:
        """The largest model file that is shipped."""
        return max(self.models.values(), default=None)


def read_folder(path: Path) -> Folder:
    """Read a folder; raises StageError if there is none."""
    if not path.is_dir():
        raise StageError(f"--check takes a records folder; {path} is none; give the folder that holds submission.json")
    files = dict(sorted(_files(path)))
    claims, error = _claims(path, files)
    code = {name: content for name in files if name.endswith(CODE) and (content := _content(path, files, name))}
    return Folder(
        path=path,
        files=files,
        record=_is_record(path, claims),
        claims=claims,
        claims_error=error,
        evidence=tuple(_evidence(path, files)),
        code=code,
        script=read_script(SCRIPT, code) if SCRIPT in code else None,
    )


def _files(root: Path) -> Iterator[tuple[str, int]]:
    for folder, folders, names in os.walk(root):  # links are not followed
        folders[:] = sorted(name for name in folders if name not in (".git", "__pycache__"))
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(root).as_posix(), path.stat().st_size


def _content(root: Path, files: Mapping[str, int], name: str) -> bytes:
    return (root / name).read_bytes() if files[name] <= _READ_LIMIT else b""


def _claims(root: Path, files: Mapping[str, int]) -> tuple[Claims | None, str]:
    if "submission.json" not in files:
        return None, ""
    try:
        return read_claims(_content(root, files, "submission.json").decode("utf-8-sig")), ""
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None, str(error)


def _evidence(root: Path, files: Mapping[str, int]) -> Iterator[Evidence]:
    for name in files:
        if not name.endswith((".log", ".txt")) or name.rpartition("/")[2].lower() in _NO_LOG:
            continue
        log = read_log(name, _content(root, files, name).decode("utf-8", "replace"))
        named = _SEED.search(name.rpartition("/")[2].lower())
        for run in log.runs:
            if run.scores or run.train_s is not None:
                seed = named[1] if named else None if run.seed is None else str(run.seed)
                yield Evidence(log, run, seed)


def _is_record(path: Path, claims: Claims | None) -> bool:
    said = [path.resolve().parent.name, str((claims.raw if claims else {}).get("track", ""))]
    return not any("non" in word.lower() and "record" in word.lower() for word in said)
