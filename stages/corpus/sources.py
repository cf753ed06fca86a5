"""Which files a source names, in which order, and how each is read. No file is opened here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from stages.contract import StageError
from stages.urls import filesystem

Kind = Literal["text", "jsonl", "parquet", "shards"]

ENDINGS: dict[str, Kind] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".bin": "shards",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # of text and JSONL


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    fs: Any  # an fsspec filesystem
    path: str  # inside `fs`
    kind: Kind
    compression: str  # "", "gzip" or "zstd"
    info: dict[str, Any] = field(compare=False)  # what the filesystem says of it, such as an ETag

    @property
    def bytes(self) -> int:
        """Size as stored; 0 where the filesystem does not say."""
        return int(self.info.get("size") or 0)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]


def list_files(url: str, form: Literal["auto"] | Kind) -> list[SourceFile]:
    """The files that a path, folder, glob or URL names, sorted by path, all of one kind. Raises StageError.

    A folder gives the files below it whose ending says `form` (every file, for "text"; any known ending, for "auto"),
    hidden ones left out. A file or a glob gives exactly what it names.
    """
    fs, path = filesystem(url)
    try:
        fs.invalidate_cache()  # a listing remembered in this process would hide what has changed since
        found, folder = _find(fs, path)
    except FileNotFoundError:
        found, folder = {}, False
    except Exception as error:  # every filesystem has errors of its own; none of them means "empty"
        raise StageError(f"a source must be readable; {url} is not: {type(error).__name__}: {error}") from error
    if not found:
        raise StageError(f"a source names at least one file; there is none at {url}; mend the URL")
    files = [_file(fs, name, found[name], form) for name in sorted(found)]
    kept = [f for f in files if f is not None and (not folder or form in ("auto", "text") or _kind(f.name)[0] == form)]
    if not kept or (len(kept) < len(files) and not folder):
        odd = next(name for name, file in zip(sorted(found), files, strict=True) if file not in kept)
        raise StageError(
            f"format {form!r} goes by the file's ending: {', '.join(ENDINGS)} (.gz or .zst after text and JSONL); got "
            f"{odd.rsplit('/', 1)[-1]} at {url}; set corpus.format"
        )
    kinds = sorted({f.kind for f in kept})
    if len(kinds) > 1:
        raise StageError(f"a source has files of one kind; {url} has {' and '.join(kinds)}; set corpus.format")
    return kept


def _find(fs: Any, path: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """{path: info} of the files, and whether they were found below a folder."""
    web = "http" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    if any(c in path for c in ("*[" if web else "*?[")):  # on the web, "?" starts a query
        return {name: info for name, info in fs.glob(path, detail=True).items() if _is_file(info)}, False
    # Asking a web server whether an address is a folder would download it.
    folder = path.endswith("/") if web else fs.isdir(path)
    if not folder:
        return {path: fs.info(path)}, False
    root = path.rstrip("/") + "/"
    found = fs.find(path, detail=True)
    return {
        name: info
        for name, info in found.items()
        if _is_file(info) and not any(part.startswith(".") for part in name.removeprefix(root).split("/"))
    }, True


def _is_file(info: dict[str, Any]) -> bool:
    return info.get("type") != "directory"


def _kind(name: str) -> tuple[Kind | None, str]:
    lower = name.lower()
    for ending, compression in COMPRESSIONS.items():
        if lower.endswith(ending):
            return _kind(lower.removesuffix(ending))[0], compression
    return next((kind for ending, kind in ENDINGS.items() if lower.endswith(ending)), None), ""


def _file(fs: Any, path: str, info: dict[str, Any], form: Literal["auto"] | Kind) -> SourceFile | None:
    """How to read `path`, or None where `form` and the ending do not say."""
    by_ending, compression = _kind(path.split("?")[0] if "://" in path else path)
    kind = by_ending if form == "auto" else form
    if kind is None or (compression and kind in ("parquet", "shards")):
        return None
    return SourceFile(fs, path, kind, compression, info)
