"""The code of a records folder: which files the script reaches, what it unpacks to, and whether it only starts another.

Nothing is executed. Packed scripts are opened by finding their long literals and trying the decoders of the standard
library on them, with a limit on what may come out.
"""

from __future__ import annotations

import ast
import base64
import binascii
import bz2
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

CODE = (".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".rs", ".so", ".pyx", ".triton")
_LITERAL = 1000  # characters from which on a literal may be packed code
_LIMIT = 32_000_000  # bytes that packed code may unpack to
_OPENERS = ("open", "read_text", "read_bytes", "run_path", "run_module")
_IMPORT = re.compile(r"\b(?:import|from)\s+([\w.]+)")
_LONG = re.compile(r"""["']([^"'\\\s]{1000,})["']""")


@dataclass(frozen=True)
class Script:
    """One script as shipped."""

    name: str
    bytes: int
    unpacked: tuple[bytes, ...]  # what its packed literals hold
    reaches: tuple[str, ...]  # names of other code files of the folder, in order, itself not among them
    indirect: str  # the file-reading call that it executes the result of; "" for none


def read_script(name: str, files: Mapping[str, bytes]) -> Script:
    """A script of the folder's code `files`, {path: content}."""
    content = files[name]
    unpacked = tuple(unpack(content))
    texts = [content, *unpacked]
    reached = list(dict.fromkeys(other for text in texts for other in _reached(text, files) if other != name))
    for other in reached:  # grows while it is walked
        reached += [each for each in _reached(files[other], files) if each not in reached and each != name]
    indirect = next((call for text in texts if (call := _indirect(text))), "")
    return Script(name, len(content), unpacked, tuple(reached), indirect)


def unpack(content: bytes) -> Iterator[bytes]:
    """What long literals decode to: base 85 or 64, and one of the standard library's compressions."""
    for literal in _literals(content):
        for decode in (base64.b85decode, base64.b64decode, base64.a85decode):
            try:
                packed = decode(literal)
            except (ValueError, binascii.Error):
                continue
            if (text := _decompress(packed)) is not None:
                yield text
                break


def _literals(content: bytes) -> Iterator[bytes]:
    tree = _parse(content)
    if tree is None:
        yield from (match.encode() for match in _LONG.findall(content.decode("utf-8", "replace")))
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) >= _LITERAL:
            yield node.value.encode("utf-8", "replace") if isinstance(node.value, str) else node.value


def _decompress(packed: bytes) -> bytes | None:
    """What one of the decoders makes of it, if that is text."""
    for decode in _DECODERS:
        try:
            text = decode().decompress(packed, _LIMIT)
            text.decode("utf-8")  # raw decoders make something out of anything; only text is code
        except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError):
            continue
        if text:
            return text
    return None


class _Decoder(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_DECODERS: tuple[Callable[[], _Decoder], ...] = (
    lzma.LZMADecompressor,
    bz2.BZ2Decompressor,
    lambda: zlib.decompressobj(zlib.MAX_WBITS | 32),
    lambda: zlib.decompressobj(-zlib.MAX_WBITS),
    lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "preset": 9}]),
    lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}]),
)


def _parse(content: bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():  # foreign escapes are no warning of ours
            warnings.simplefilter("ignore")
            return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _reached(content: bytes, files: Mapping[str, bytes]) -> Iterator[str]:
    """Code files of the folder that a source imports, or names in a string."""
    tree = _parse(content)
    if tree is not None:
        nodes = list(ast.walk(tree))
        modules = {name for node in nodes for name in _imports(node)}
        strings = " ".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    else:  # written for another Python, or not Python: names anywhere in it count
        strings = content.decode("utf-8", "replace")
        modules = set(_IMPORT.findall(strings))
    for path in files:
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        imported = path.endswith(".py") and any(name == module or name.startswith(f"{module}.") for name in modules)
        named = re.search(rf"(?<![\w.]){re.escape(path.rpartition('/')[2])}(?!\w)", strings)
        if imported or named:
            yield path


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _indirect(content: bytes) -> str:
    """The call by which a source executes what stands in another file."""
    tree = _parse(content)
    for node in ast.walk(tree) if tree is not None else ():
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func)
        inner = [
            _name(each.func) for argument in node.args for each in ast.walk(argument) if isinstance(each, ast.Call)
        ]
        if name in ("run_path", "run_module") or (name == "exec" and any(each in _OPENERS for each in inner)):
            return ast.unparse(node)[:120]
    return ""


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
