"""Messages between the audit and a scorer's process: a JSON header, then raw little-endian numbers. No code travels.

uint32 length of the header   header (UTF-8 JSON, "arrays": [[dtype, shape], ...])   the arrays' bytes, in order
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

_LENGTH = struct.Struct("<I")
_DTYPES = ("<i8", "<f4")
_MAX_HEADER_BYTES = 1 << 22
MAX_ARRAY_BYTES = 1 << 32


class WireError(ValueError):
    """The other side ended, or sent what is no message."""


def send(stream: BinaryIO, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write one message: int64 and float32 arrays of any shape."""
    parts = [np.ascontiguousarray(array) for array in arrays]
    described = [[array.dtype.newbyteorder("<").str, list(array.shape)] for array in parts]
    text = json.dumps({**header, "arrays": described}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for array in parts:
        stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read one message; WireError when the other side has gone or sends anything else."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > _MAX_HEADER_BYTES:
        raise WireError(f"a header has at most {_MAX_HEADER_BYTES} bytes; this one says {length}")
    try:
        header = json.loads(_exactly(stream, length))
        described = header.pop("arrays")
        return header, [_array(stream, dtype, shape) for dtype, shape in described]
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise WireError(f"a message begins with a JSON header; this one does not: {error}") from error


def _array(stream: BinaryIO, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype not in _DTYPES or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise WireError(f"an array is {' or '.join(_DTYPES)} with a shape; got {dtype!r} {shape!r}")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > MAX_ARRAY_BYTES:
        raise WireError(f"an array has at most {MAX_ARRAY_BYTES} bytes; this one says {size}")
    return np.frombuffer(bytearray(_exactly(stream, size)), dtype=dtype).reshape(shape)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    read = stream.read(size)
    if len(read) != size:
        raise WireError("the other process ended in the middle of an answer")
    return read
