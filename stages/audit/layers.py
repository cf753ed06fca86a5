"""The layers of what is submitted, for T13: every form that bytes of an archive, or of the code, take on their way.

An archive of ours is decoded step by step, down to its tensors; any other file by what common compressors and
containers hold, one inside another. Of code each long literal is looked at, as it stands and decoded, and where source
comes of that, its literals too: so our own packed program is opened as far as a published one.
"""

from __future__ import annotations

import ast
import base64
import binascii
import bz2
import io
import lzma
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import zstandard
from torch import Tensor

from model.archive import CHECKSUM, DAMAGE, MAGIC, PREFIX, list_sections, read_quantized
from model.quantized import Coded

LEAST_LITERAL = 256  # characters; what is shorter holds too little to be more than an accident
MAX_DEPTH = 4  # of streams inside streams
MAX_SOURCES = 3  # of sources inside sources
MAX_LAYER_BYTES = 1 << 30  # what a layer may grow to: a bomb is opened no further
_MOST_DIGITS = 1 << 17  # of a number in a literal: reading it takes time by the square

Layer = tuple[str, bytes]


class Engine(Protocol):
    """A decompressor of one stream, as the standard library has them."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What lies behind its end."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """At most so many bytes of the stream."""
        ...


def archive_layers(path: Path) -> Iterator[Layer]:
    """The layers of an archive of ours, or of any file that common compressors made."""
    content = path.read_bytes()
    yield path.name, content
    if content[:4] != MAGIC:
        yield from peeled(path.name, content)
        return
    _, _, header_bytes = PREFIX.unpack_from(content)
    begin = PREFIX.size + header_bytes
    yield f"{path.name}: header", zlib.decompress(content[PREFIX.size : begin])
    for section in list_sections(path):
        body = content[begin : begin + section.bytes]
        begin += section.bytes
        name = f"{path.name}: {section.label}"
        for number, step in enumerate(reversed(section.chain.bytes)):
            body = step.decode(body)
            yield f"{name}, decoded {number + 1}", body
        yield from peeled(name, body)
    if begin != len(content) - CHECKSUM.size:
        yield f"{path.name}: rest", content[begin:]
    tensors, _, _ = read_quantized(path)
    yield from tensor_layers(tensors)


def tensor_layers(tensors: Mapping[str, Coded | Tensor]) -> Iterator[Layer]:
    """Every tensor as it lies in memory, and as tokens where its values are whole numbers."""
    for name, tensor in tensors.items():
        parts = {"codes": tensor.codes, "scales": tensor.scales} if isinstance(tensor, Coded) else {"": tensor}
        for part, values in parts.items():
            label = f"tensor {name} {part}".rstrip()
            array = values.detach().cpu().contiguous().numpy()
            yield label, array.tobytes()
            if array.dtype.kind == "f" and array.size and _whole(array):
                yield f"{label} as ids", array.astype("<u2").tobytes()


def _whole(array: np.ndarray) -> bool:
    array = array.astype(np.float32)  # fp16 ends below 2^16
    return bool(np.isfinite(array).all() and array.min() >= 0 and array.max() < 1 << 16 and (array % 1 == 0).all())


def code_layers(path: Path) -> Iterator[Layer]:
    """The code, and what its long literals hold."""
    content = path.read_bytes()
    yield path.name, content
    yield from literal_layers(path.name, content)


def literal_layers(name: str, source: bytes, depth: int = 0) -> Iterator[Layer]:
    """The long literals of Python source, decoded and decompressed; nothing where it is no source."""
    if depth == MAX_SOURCES:
        return
    for number, data in enumerate(_literals(source), 1):
        literal = f"{name}: literal {number}"
        yield literal, data
        for kind, decode in DECODERS.items():
            try:
                decoded = decode(data)
            except (ValueError, binascii.Error):
                continue
            for layer in ((f"{literal}, {kind}", decoded), *peeled(f"{literal}, {kind}", decoded)):
                yield layer
                yield from literal_layers(*layer, depth + 1)


def _literals(source: bytes) -> Iterator[bytes]:
    try:
        with warnings.catch_warnings():  # odd escapes of other people's strings are no warning of ours
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # no Python: its bytes are looked at
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) >= LEAST_LITERAL:
            yield node.value.encode("utf-8", "surrogatepass") if isinstance(node.value, str) else node.value


def _base92(data: bytes) -> bytes:
    """One number in the digits # to ~, as `bundle` writes a packed program."""
    if len(data) > _MOST_DIGITS or not all(ord("#") <= digit <= ord("~") for digit in data):
        raise ValueError("no number in 92 digits")
    number = 0
    for digit in data:
        number = number * 92 + digit - ord("#")
    # A number keeps no leading zero; a raw LZMA stream begins with one.
    return bytes(1) + number.to_bytes((number.bit_length() + 7) // 8, "big")


DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "base85": base64.b85decode,
    "base64": base64.b64decode,
    "hex": binascii.unhexlify,
    "base92": _base92,
}


def peeled(name: str, data: bytes, depth: int = 0) -> Iterator[Layer]:
    """What compressors and containers hold, one inside another."""
    if depth == MAX_DEPTH:
        return
    for kind, peel in PEELERS.items():
        try:
            inner = peel(data)
        except (*DAMAGE, OSError, RuntimeError, MemoryError, zipfile.BadZipFile, zstandard.ZstdError):
            continue  # RuntimeError: a zip with a password, or with a method that is not known
        if inner:
            yield f"{name} > {kind}", inner
            yield from peeled(f"{name} > {kind}", inner, depth + 1)


def _streams(begins: bytes, engine: Callable[[], Engine], data: bytes) -> bytes:
    """All streams that lie one behind another; what follows the last is of no decompressor's concern."""
    parts: list[bytes] = []
    left = MAX_LAYER_BYTES if data.startswith(begins) else 0
    while data and left:
        stream = engine()
        try:
            parts.append(stream.decompress(data, left))
        except (*DAMAGE, OSError):
            break
        left -= len(parts[-1])
        data = stream.unused_data if stream.eof else b""
    return b"".join(parts)


def _raw_lzma(literal_contexts: int) -> Engine:
    """As `bundle` packs: raw LZMA, which does not say its own settings."""
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9, "lc": literal_contexts, "pb": 0}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)


def _zstd(data: bytes) -> bytes:
    if data[:4] != b"\x28\xb5\x2f\xfd":
        return b""
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as stream:
        return stream.read(MAX_LAYER_BYTES)


def _zip(data: bytes) -> bytes:
    if data[:2] != b"PK":
        return b""
    parts: list[bytes] = []
    left = MAX_LAYER_BYTES
    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch.save writes one
        for name in archive.namelist():
            with archive.open(name) as member:
                parts.append(member.read(left))
            left -= len(parts[-1])
    return b"".join(parts)


PEELERS: Mapping[str, Callable[[bytes], bytes]] = {
    "zlib": partial(_streams, b"", zlib.decompressobj),
    "gzip": partial(_streams, b"\x1f\x8b", partial(zlib.decompressobj, zlib.MAX_WBITS | 16)),
    "bz2": partial(_streams, b"BZh", bz2.BZ2Decompressor),
    "xz": partial(_streams, b"", lzma.LZMADecompressor),
    **{f"lzma lc={lc}": partial(_streams, b"\0", partial(_raw_lzma, lc)) for lc in range(5)},
    "zstd": _zstd,
    "zip": _zip,
}
