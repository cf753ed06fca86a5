"""The embedded corpus: English prose that the installation carries, so that a first run downloads nothing.

It is the docstrings of the standard library and of named packages, and the topics of `pydoc_data`; one document per
module, read from source files and never by importing them. Code, tables and formulas are left out paragraph by
paragraph, and no paragraph appears twice, so neither copied modules nor boilerplate leak from train into val.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Folders below the installation's package folder, chosen for prose per byte of source. Of torch and Prefect, the parts
# that are written for users. A package that another version of the lock no longer brings is skipped.
PACKAGES = (
    *("PIL", "anyio", "attr", "click", "dateutil", "docker", "fastapi", "filelock", "fsspec", "graphviz"),
    *("griffe", "h2", "httpx", "jinja2", "mako", "matplotlib", "mpmath", "networkx", "numpy", "packaging"),
    *("prefect/client", "prefect/server", "pyarrow", "pydantic", "pydantic_core", "pyparsing", "requests"),
    *("rich", "sqlalchemy", "torch/autograd", "torch/distributions", "torch/nn", "torch/optim", "torch/utils/data"),
    *("typer", "urllib3", "websockets", "zstandard"),
)
MIN_DOCUMENT_CHARS = 400
MIN_PARAGRAPH_CHARS = 40
MIN_LETTERS = 0.8  # share of a paragraph's visible characters; English has 0.95, reST prose 0.9, code 0.75
MIN_WORDS_PER_LINE = 3

# Tests, generated code, copies of other packages, and the parts of the standard library that later versions dropped.
_SKIPPED = frozenset(
    {"test", "tests", "testing", "_vendor", "vendored", "_generated", "__pycache__", "site-packages", "dist-packages"}
    | {"idlelib", "lib2to3", "distutils", "ensurepip", "pydoc_data", "lib-dynload", "tkinter", "turtledemo"}
)
_SAME_GROUP = {"ntpath": "os", "posixpath": "os", "genericpath": "os", "pydecimal": "decimal", "pyio": "io"}
_ROLE = re.compile(r":[a-z][\w:+-]*:`[~!.]*([^`<]*?)\s*(?:<[^`]*>)?`")
_UNDERLINE = re.compile(r"^\s*([-=~^\"'*+#.])\1{2,}\s*$", re.MULTILINE)
_LETTERS = re.compile(r"[^\W\d_]+")
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Module:
    """The prose of one module."""

    name: str  # dotted
    group: str  # top-level package: train and val share none
    text: str


def extract() -> list[Module]:
    """Every document, ordered by a hash of its name, so that any prefix is a mix. Takes some seconds on one core."""
    modules: list[Module] = []
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        for name, group, docstrings in _sources():
            paragraphs: list[str] = []
            for paragraph in _prose(docstrings):
                if paragraph not in seen:
                    seen.add(paragraph)
                    paragraphs.append(paragraph)
            text = "\n\n".join(paragraphs)
            if len(text) >= MIN_DOCUMENT_CHARS:
                modules.append(Module(name, group, text))
    return sorted(modules, key=lambda module: hashlib.sha256(module.name.encode()).digest())


def digest(modules: Iterable[Module]) -> str:
    """The identity of the extracted text: sha256 over names, groups and texts in order."""
    whole = hashlib.sha256()
    for module in modules:
        for part in (module.name, module.group, module.text):
            raw = part.encode()
            whole.update(len(raw).to_bytes(8, "little"))
            whole.update(raw)
    return whole.hexdigest()


def stamp() -> str:
    """A cheap fingerprint of what `extract` would read: equal stamps on one machine mean equal text.

    It holds the interpreter's build, this module's source, the packages' `__init__.py` and the versions installed, so
    it never needs to read the packages themselves.
    """
    parts: list[object] = [sys.version, Path(__file__).read_bytes()]
    for folder in (_stdlib(), *_site_folders()):
        names = os.listdir(folder) if folder.is_dir() else []
        parts.append((str(folder), sorted(set(names) - {"__pycache__"})))  # dist-info folders carry the versions
    for package in PACKAGES:
        for folder in _site_folders():
            try:
                found = (folder / package / "__init__.py").stat()
            except FileNotFoundError:
                continue
            parts.append((package, found.st_size, found.st_mtime_ns))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def val_groups(modules: Iterable[Module], fraction: float) -> frozenset[str]:
    """The groups that make val: in the order of their name's hash, each that still fits into `fraction` of the text.

    So val has its size whatever the groups' sizes, and is made of several small packages instead of one large one.
    """
    size: dict[str, int] = {}
    for module in modules:
        size[module.group] = size.get(module.group, 0) + len(module.text.encode())
    room = fraction * sum(size.values())
    chosen = []
    for group in sorted(size, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if size[group] <= room:
            room -= size[group]
            chosen.append(group)
    return frozenset(chosen)


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _site_folders() -> list[Path]:
    return sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")})


def _sources() -> Iterator[tuple[str, str, list[str]]]:
    """(module name, group, docstrings) in a fixed order; unreadable and prose-free sources are left out."""
    stdlib = _stdlib()
    yield from _topics(stdlib / "pydoc_data" / "topics.py")
    yield from _modules(stdlib, stdlib)
    for package in sorted(PACKAGES):
        for folder in _site_folders():
            yield from _modules(folder / package, folder)


def _modules(top: Path, root: Path) -> Iterator[tuple[str, str, list[str]]]:
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.endswith("-info"))
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix != ".py" or file.startswith(("test_", "turtle")):
                continue
            source = path.read_bytes()
            if b'"""' not in source and b"'''" not in source:
                continue
            try:
                docstrings = list(_docstrings(ast.parse(source)))
            except (SyntaxError, ValueError):  # a template, or a module for another version of Python
                continue
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            group = parts[0].strip("_")
            yield name, _SAME_GROUP.get(group, group), docstrings


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node, clean=False)
    if text:
        yield inspect.cleandoc(text)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def _topics(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    if not path.is_file():  # some distributions split it off
        return
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in sorted(ast.literal_eval(statement.value).items()):
                yield f"pydoc_data.topics.{topic}", "pydoc_data", [text]


def _prose(docstrings: Iterable[str]) -> Iterator[str]:
    for docstring in docstrings:
        for raw in _PARAGRAPHS.split(docstring):
            paragraph = _UNDERLINE.sub("", _ROLE.sub(r"\1", raw.replace("``", ""))).strip()
            paragraph = _PARAGRAPHS.sub("\n", paragraph)
            if len(paragraph) >= MIN_PARAGRAPH_CHARS and _reads_as_prose(paragraph):
                yield paragraph


def _reads_as_prose(paragraph: str) -> bool:
    words = paragraph.split()
    visible = "".join(words)
    enough_words = len(words) >= MIN_WORDS_PER_LINE * (paragraph.count("\n") + 1)  # a list of names has one per line
    return enough_words and ">>>" not in visible and len(_LETTERS.sub("", visible)) <= (1 - MIN_LETTERS) * len(visible)
