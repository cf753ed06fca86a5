"""Which of our modules a stage can execute: its static import closure, with a digest of each module.

Function-level imports count, imports under `if TYPE_CHECKING` do not. A dynamic import would let a stage run code that
its key does not know, so it is an error. Digests are of the normal form (`normal.py`). They are remembered per file, by
size, times and inode, so that a plan parses only what has changed since the last one.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from flows.normal import digest_form, form_of, is_type_checking, whole_form_of
from stages.contract import StageError

PACKAGES = ("artifacts", "configs", "flows", "model", "stages")  # everything else is installed, not ours
ROOT = Path(__file__).resolve().parents[1]
_CACHE_SCHEMA = 3
# A file written twice within the clock's resolution can keep its stamp: younger files are parsed every time.
_SETTLED_S = 2.0


@dataclass(frozen=True)
class Closure:
    """The modules that an entry module can execute."""

    digests: Mapping[str, str]  # module, or data file, -> digest
    whole: Mapping[str, str]  # the same, error text and fields of configurations included
    files: Mapping[str, Path]  # path relative to the root -> file; the packages' empty __init__.py too


@dataclass(frozen=True)
class _Facts:
    """What one file says, whatever the files around it say."""

    sha256: str  # of the file's text
    digest: str
    whole: str
    acts: bool  # has statements at all; an empty __init__.py has none
    imports: tuple[tuple[str, str], ...]  # (module, name or "")
    data: tuple[str, ...]  # relative paths of data files that the module declares in DATA_FILES


class SourceTree:
    """A tree of our packages. Each file is looked at once, so that one plan sees one state of the tree.

    `original`: the tree that this one was copied from. What it has parsed is not parsed again if the text is the same.
    """

    def __init__(self, root: Path = ROOT, cache: Path | None = None, original: SourceTree | None = None) -> None:
        self.root = root
        self._original = original
        self._cache = cache
        self._known: dict[str, dict[str, object]] | None = None
        self._facts: dict[str, tuple[list[int], _Facts]] = {}  # path -> (stamp when it was read, facts)
        self._paths: dict[str, str | None] = {}
        self._learned = False

    def closure(self, entry: str) -> Closure:
        """The closure of module `entry`. Raises StageError for a module that is missing or imports dynamically."""
        digests: dict[str, str] = {}
        whole: dict[str, str] = {}
        files: dict[str, Path] = {}
        wanted = [(entry, "")]
        seen: set[str] = set()
        while wanted:
            for module in self._modules(*wanted.pop()):
                if module in seen:
                    continue
                seen.add(module)
                path = self._path(module)
                if path is None:
                    raise StageError(f"every import of ours is a file of the tree; {module} is none; mend the import")
                facts = self._read(path)
                files[path] = self.root / path
                if facts.acts:
                    digests[module], whole[module] = facts.digest, facts.whole
                for data in facts.data:
                    files[data] = self.root / data
                    digests[data] = whole[data] = _digest_data(self.root / data, path)
                wanted += facts.imports
        return Closure(dict(sorted(digests.items())), dict(sorted(whole.items())), dict(sorted(files.items())))

    def stage(self, name: str) -> Closure:
        """The closure of the process that runs stage `name`."""
        return self.closure(f"stages.{name}.__main__")

    def save(self) -> None:
        """Remember what was learned. The cache saves time only, so a folder that cannot be written is no error."""
        if self._cache is None or not self._learned:
            return
        now_ns = time.time_ns()
        remembered = {p: e for p, e in self._remembered().items() if Path(p).is_file()}
        for path, (stamp, facts) in self._facts.items():
            if now_ns - max(stamp[1], stamp[2]) > _SETTLED_S * 1e9:
                remembered[str(self.root / path)] = {"stamp": stamp, "facts": asdict(facts)}
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._cache.parent, prefix=f"{self._cache.name}.")
            temporary = Path(name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as out:
                    json.dump({"schema": _CACHE_SCHEMA, "files": remembered}, out)
                temporary.replace(self._cache)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError:
            return
        self._learned = False

    def _modules(self, module: str, name: str) -> Iterator[str]:
        """The modules that `import module` or `from module import name` executes, packages first."""
        parts = module.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        if name and self._path(f"{module}.{name}") is not None:
            yield f"{module}.{name}"

    def _path(self, module: str) -> str | None:
        if module not in self._paths:
            base = module.replace(".", "/")
            candidates = (f"{base}/__init__.py", f"{base}.py")
            self._paths[module] = next((c for c in candidates if (self.root / c).is_file()), None)
        return self._paths[module]

    def _read(self, path: str) -> _Facts:
        if path not in self._facts:
            file = self.root / path
            entry = self._remembered().get(str(file))
            stamp = _stamp(file)
            if entry is not None and entry["stamp"] == stamp:
                self._facts[path] = stamp, _facts_from_json(entry["facts"])
            else:
                self._facts[path] = stamp, self._learn(file.read_text(encoding="utf-8"), path)
                self._learned = True
        return self._facts[path][1]

    def _learn(self, source: str, path: str) -> _Facts:
        known = self._original._facts.get(path) if self._original is not None else None
        return known[1] if known is not None and known[1].sha256 == _sha256(source) else read_facts(source, path)

    def _remembered(self) -> dict[str, dict[str, object]]:
        if self._known is None:
            self._known = _read_cache(self._cache) if self._cache else {}
        return self._known


def _read_cache(path: Path) -> dict[str, dict[str, object]]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or damaged: everything is parsed again
        return {}
    return raw["files"] if isinstance(raw, dict) and raw.get("schema") == _CACHE_SCHEMA else {}


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _facts_from_json(raw: object) -> _Facts:
    assert isinstance(raw, dict)
    imports = tuple((module, name) for module, name in raw["imports"])
    return _Facts(raw["sha256"], raw["digest"], raw["whole"], raw["acts"], imports, tuple(raw["data"]))


def _sha256(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _digest_data(file: Path, declared_by: str) -> str:
    if not file.is_file():
        raise StageError(f"DATA_FILES name files of the tree; {declared_by} names {file.name}, which is not there")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def is_config_module(path: str) -> bool:
    """Whether fields of this file's classes are known by their values; see `normal.py`."""
    return path.rsplit("/", 1)[-1] in ("config.py", "protocol.py")


@lru_cache(maxsize=1024)  # several trees of one process hold the same files
def read_facts(source: str, path: str) -> _Facts:
    """Parse one file. Raises StageError for a syntax error or a dynamic import, with file and line."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise StageError(f"source files parse; {path} line {error.lineno} does not: {error.msg}") from error
    imports: list[tuple[str, str]] = []
    for node in _executable(tree):
        imports += _imports(node, path)
    data, whole = _data_files(tree), digest_form(whole_form_of(tree))
    form = form_of(tree, is_config=is_config_module(path))
    return _Facts(_sha256(source), digest_form(form), whole, bool(form), tuple(dict.fromkeys(imports)), data)


def _executable(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and is_type_checking(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _imports(node: ast.AST, path: str) -> list[tuple[str, str]]:
    """Our modules that this node imports."""
    found: list[tuple[str, str]] = []
    if isinstance(node, ast.Import):
        found = [(alias.name, "") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise StageError(f"imports are absolute; {path} line {node.lineno} has a relative one; spell it out")
        found = [(node.module or "", alias.name) for alias in node.names]
    elif isinstance(node, ast.Name) and node.id in {"__import__", "exec", "eval"}:
        raise _dynamic(node.id, path, node.lineno)
    for module, name in found:
        full = f"{module}.{name}".rstrip(".")
        if module == "runpy" or (full.startswith("importlib") and not full.startswith(_READERS)):
            raise _dynamic(full, path, getattr(node, "lineno", 0))
    return [(module, name) for module, name in found if module.split(".")[0] in PACKAGES]


_READERS = ("importlib.metadata", "importlib.resources")  # they read files and execute nothing


def _dynamic(what: str, path: str, line: int) -> StageError:
    return StageError(
        f"a stage's identity follows static imports, so dynamic ones are forbidden; "
        f"{path} line {line} uses {what}; import the module by name"
    )


def _data_files(tree: ast.Module) -> tuple[str, ...]:
    """Paths in a module's `DATA_FILES = (...)`: what it reads beside its own source counts as code."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["DATA_FILES"]:
            return tuple(ast.literal_eval(node.value))
    return ()
