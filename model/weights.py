"""Float tensors in one file: the safetensors format, read and written here so that a bundle needs no extra library.

Two additions inside what the format allows: files are a pure function of their content (no clock, fixed order), and
`__metadata__` carries a CRC-32 of header and data, so that a flipped byte is an error and never a wrong weight. Files
of other writers have no CRC-32 and are read without that check. Byte table: `model/README.md`.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHECKSUM = "crc32"  # our key in __metadata__
MAX_HEADER_BYTES = 100_000_000  # the format's own limit, against allocation bombs


class FormatError(ValueError):
    """A file of ours is damaged or not what it claims to be. The text says which file, the rule, and what was found."""


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` and string `metadata` to `path`, replacing it in one move.

    Equal content gives equal bytes. Tensors may lie on any device and have any strides.
    """
    metadata = dict(sorted((metadata or {}).items()))
    if CHECKSUM in metadata or "__metadata__" in tensors:
        raise ValueError(f"metadata {CHECKSUM!r} and tensor '__metadata__' are names of the format; use another")
    # Wide types first: the format allows no holes, and so every tensor is aligned to its own element size.
    arrays = {name: _bytes_of(name, tensors[name]) for name in sorted(tensors, key=lambda n: (-tensors[n].itemsize, n))}
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, array in arrays.items():
        tensor = tensors[name]
        offsets = [begin, begin + array.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        begin += array.nbytes
    metadata[CHECKSUM] = _checksum(header, arrays.values())
    text = _canonical(header)
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.data)
    os.replace(partial, path)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read (tensors, metadata). Tensors are CPU views of a private memory map: changing them never changes the file.

    Raises FormatError for whatever is not exactly a well-formed file.
    """
    try:
        raw = np.memmap(path, np.uint8, "c")
    except (OSError, ValueError) as error:
        raise FormatError(f"a weights file can be opened and is not empty; {path.name}: {error}") from error
    header, start = _read_header(path, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "__metadata__ maps names to strings", repr(metadata)[:80])
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, offsets) in sorted(spans.items(), key=lambda item: item[1][2]):
        if offsets[0] != end:
            raise _damaged(path, "tensors fill the file without hole or overlap", f"{name} starts at {offsets[0]}")
        end = offsets[1]
    if end != len(raw) - start:
        raise _damaged(path, f"the header describes {end} data bytes", f"{len(raw) - start} in the file")
    if (stated := metadata.pop(CHECKSUM, None)) is not None:
        found = _checksum({"__metadata__": metadata, **header}, [raw[start:]])
        if found != stated:
            raise _damaged(path, f"CRC-32 {stated}", f"CRC-32 {found}")
    data = torch.from_numpy(raw)
    tensors = {name: _view(data, start, *span) for name, span in spans.items()}
    return tensors, metadata


def _damaged(path: Path, rule: str, came: str) -> FormatError:
    return FormatError(f"{path.name} is damaged or not a safetensors file: expected {rule}; found {came}; make it anew")


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _checksum(header: Mapping[str, Any], chunks: Iterable[np.ndarray]) -> str:
    """CRC-32 of the header without the checksum itself, then of the data, as 8 hexadecimal digits."""
    crc = zlib.crc32(json.dumps(header, separators=(",", ":"), sort_keys=True).encode())
    for chunk in chunks:
        crc = zlib.crc32(chunk.data, crc)
    return f"{crc:08x}"


def _bytes_of(name: str, tensor: Tensor) -> np.ndarray:
    if tensor.dtype not in NAMES:
        raise ValueError(f"a weights file holds {', '.join(DTYPES)}; {name} is {tensor.dtype}; convert it first")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def _read_header(path: Path, raw: np.ndarray) -> tuple[dict[str, Any], int]:
    """The JSON header and the position of the first data byte."""
    size = int.from_bytes(raw[:8].tobytes(), "little")
    if len(raw) < 8 or size > min(MAX_HEADER_BYTES, len(raw) - 8):
        raise _damaged(path, "8 bytes of header length, then the header", f"length {size} in {len(raw)} bytes")
    text = raw[8 : 8 + size].tobytes()
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "a JSON header", f"{text[:40]!r} ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "a JSON object as header", type(header).__name__)
    return header, 8 + size


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _span(path: Path, name: str, entry: Any) -> tuple[torch.dtype, list[int], list[int]]:
    """(dtype, shape, [begin, end]) of one header entry, checked against each other."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"dtype, shape and data_offsets for {name}", repr(entry)[:80])
    dtype, shape, offsets = DTYPES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise _damaged(path, f"one of {', '.join(DTYPES)} for {name}", repr(entry["dtype"])[:40])
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise _damaged(path, f"non-negative integers in shape and data_offsets of {name}", repr(numbers)[:80])
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _damaged(path, f"data_offsets of {name} as long as shape {shape}", repr(offsets)[:80])
    return dtype, shape, offsets


def _view(data: Tensor, start: int, dtype: torch.dtype, shape: list[int], offsets: list[int]) -> Tensor:
    flat = data[start + offsets[0] : start + offsets[1]]
    if flat.storage_offset() % dtype.itemsize:
        flat = flat.clone()  # another writer may not align
    return flat.view(dtype).view(shape)
