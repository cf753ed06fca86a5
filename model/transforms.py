"""The steps that make tensors small, as three types: tensor -> codes -> bytes -> smaller bytes.

A `Chain` holds one step of the first type, one of the second and any number of the third, so a wrong order is a type
error before any data moves. Every step is a frozen value with an exact inverse; its name and numbers travel in the
archive.
"""

from __future__ import annotations

import lzma
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from model import rans
from model.grid import pack, unpack

MAX_DICTIONARY_BYTES = 1 << 26

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class TensorStep(ABC):
    """tensor -> codes: an integer array of the same shape."""

    @abstractmethod
    def encode(self, tensor: Tensor) -> np.ndarray:
        """The codes of one tensor."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> Tensor:
        """The tensor of its codes."""


@dataclass(frozen=True)
class CodeStep(ABC):
    """codes -> bytes: several integer arrays become one byte string."""

    @abstractmethod
    def encode(self, arrays: Sequence[np.ndarray]) -> bytes:
        """The bytes of the arrays, without their shapes."""

    @abstractmethod
    def decode(self, data: bytes, shapes: Shapes) -> list[np.ndarray]:
        """The arrays. Raises ValueError where `data` is not what `encode` wrote for these shapes."""


@dataclass(frozen=True)
class ByteStep(ABC):
    """bytes -> smaller bytes."""

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """Compress."""

    @abstractmethod
    def decode(self, data: bytes) -> bytes:
        """Decompress."""


@dataclass(frozen=True)
class Integers(TensorStep):
    """int8 codes as they are."""

    def encode(self, tensor: Tensor) -> np.ndarray:
        """int8 tensor -> int8 array."""
        if tensor.dtype != torch.int8:
            raise TypeError(f"Integers takes int8 codes; got {tensor.dtype}")
        return tensor.cpu().numpy()

    def decode(self, codes: np.ndarray) -> Tensor:
        """int8 array -> int8 tensor."""
        return torch.from_numpy(codes.astype(np.int8))


@dataclass(frozen=True)
class FloatPatterns(TensorStep):
    """The bit patterns of floats of `bits` bits, as signed integers."""

    bits: int = 16

    def encode(self, tensor: Tensor) -> np.ndarray:
        """fp16 -> int16, or fp32 -> int32."""
        if tensor.dtype != self._dtypes()[0]:
            raise TypeError(f"FloatPatterns({self.bits}) takes {self._dtypes()[0]}; got {tensor.dtype}")
        return tensor.cpu().contiguous().view(self._dtypes()[1]).numpy()

    def decode(self, codes: np.ndarray) -> Tensor:
        """int16 -> fp16, or int32 -> fp32."""
        floats, patterns = self._dtypes()
        return torch.from_numpy(codes).to(patterns).view(floats)

    def _dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        return {16: (torch.float16, torch.int16), 32: (torch.float32, torch.int32)}[self.bits]


@dataclass(frozen=True)
class Packed(CodeStep):
    """Codes of `bits` bits without gaps; best left without a byte step, which no longer sees the codes' borders."""

    bits: int

    def encode(self, arrays: Sequence[np.ndarray]) -> bytes:
        """All codes, one after the other."""
        return pack(_joined(arrays, np.int8), self.bits)

    def decode(self, data: bytes, shapes: Shapes) -> list[np.ndarray]:
        """int8 arrays."""
        return _parted(unpack(data, self.bits, _count(shapes)), shapes)


@dataclass(frozen=True)
class Planes(CodeStep):
    """Integers of `width` bytes as byte planes, most significant first: noise stays apart from what compresses."""

    width: int = 1

    def encode(self, arrays: Sequence[np.ndarray]) -> bytes:
        """All top bytes, then all second bytes, and so on."""
        flat = _joined(arrays, self._dtype())
        return flat.view(np.uint8).reshape(-1, self.width).T.tobytes()

    def decode(self, data: bytes, shapes: Shapes) -> list[np.ndarray]:
        """Arrays of signed integers of `width` bytes."""
        if len(data) != _count(shapes) * self.width:
            raise ValueError(f"{_count(shapes)} codes of {self.width} bytes; got {len(data)} bytes")
        rows = np.frombuffer(data, np.uint8).reshape(self.width, -1).T
        return _parted(np.ascontiguousarray(rows).view(self._dtype())[:, 0], shapes)

    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(f">i{self.width}")


@dataclass(frozen=True)
class Rans(CodeStep):
    """Codes of `bits` bits through the context coder of `model/rans.py`: the entropy coding is done, no byte step."""

    bits: int

    def encode(self, arrays: Sequence[np.ndarray]) -> bytes:
        """Tables, lanes and words."""
        return rans.encode(arrays, self.bits)

    def decode(self, data: bytes, shapes: Shapes) -> list[np.ndarray]:
        """int8 arrays."""
        return rans.decode(data, shapes, self.bits)


@dataclass(frozen=True)
class Zstd(ByteStep):
    """Zstandard with a window as long as the data."""

    level: int = 22

    def encode(self, data: bytes) -> bytes:
        """One frame."""
        return zstandard.ZstdCompressor(level=self.level).compress(data)

    def decode(self, data: bytes) -> bytes:
        """One frame; its size stands in its header."""
        try:
            return zstandard.ZstdDecompressor().decompress(data)
        except zstandard.ZstdError as error:  # here, so that only who has such a frame needs the library
            raise ValueError(f"a frame of Zstandard decodes; {error}") from error


@dataclass(frozen=True)
class Lzma(ByteStep):
    """Raw LZMA2. lc = pb = 0: weights have no text-like context and no alignment, so fewer tables learn faster."""

    lc: int = 0
    pb: int = 0

    def encode(self, data: bytes) -> bytes:
        """One raw stream."""
        return lzma.compress(data, lzma.FORMAT_RAW, filters=self._filters(len(data)))

    def decode(self, data: bytes) -> bytes:
        """One raw stream."""
        return lzma.decompress(data, lzma.FORMAT_RAW, filters=self._filters(MAX_DICTIONARY_BYTES))

    def _filters(self, dictionary_bytes: int) -> list[dict[str, int]]:
        # The encoder needs ten times its dictionary: no longer one than the data, then. A decoder's may be longer.
        dictionary_bytes = min(max(dictionary_bytes, 4096), MAX_DICTIONARY_BYTES)
        fields = {"preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary_bytes, "lc": self.lc, "pb": self.pb}
        return [{"id": lzma.FILTER_LZMA2, "lp": 0, **fields}]


@dataclass(frozen=True)
class Xz(ByteStep):
    """The .xz container as `lzma.compress(data, preset=...)` writes it, for published archives; larger than `Lzma`."""

    preset: int = 6

    def encode(self, data: bytes) -> bytes:
        """One stream, with its own check."""
        return lzma.compress(data, preset=self.preset)

    def decode(self, data: bytes) -> bytes:
        """One stream."""
        return lzma.decompress(data, lzma.FORMAT_XZ)


@dataclass(frozen=True)
class Zlib(ByteStep):
    """DEFLATE in a zlib frame, for published archives."""

    level: int = 9

    def encode(self, data: bytes) -> bytes:
        """One frame."""
        return zlib.compress(data, self.level)

    def decode(self, data: bytes) -> bytes:
        """One frame."""
        return zlib.decompress(data)


@dataclass(frozen=True)
class Chain:
    """tensor -> codes -> bytes -> smaller bytes, for tensors that are stored together."""

    tensor: TensorStep
    codes: CodeStep
    bytes: tuple[ByteStep, ...] = ()

    def __post_init__(self) -> None:
        steps = [(self.tensor, TensorStep), (self.codes, CodeStep), *((step, ByteStep) for step in self.bytes)]
        for step, kind in steps:
            if not isinstance(step, kind):
                raise TypeError(
                    f"a chain is TensorStep, CodeStep, ByteStep...; got {step!r} in place of {kind.__name__}"
                )

    @property
    def names(self) -> list[str]:
        """What its steps are called, in the order of encoding."""
        return [type(step).__name__ for step in (self.tensor, self.codes, *self.bytes)]

    def encode(self, tensors: Sequence[Tensor]) -> bytes:
        """The small bytes of all `tensors`."""
        data = self.codes.encode([self.tensor.encode(tensor) for tensor in tensors])
        for step in self.bytes:
            data = step.encode(data)
        return data

    def decode(self, data: bytes, shapes: Shapes) -> list[Tensor]:
        """The tensors that `encode` was given."""
        for step in reversed(self.bytes):
            data = step.decode(data)
        return [self.tensor.decode(codes) for codes in self.codes.decode(data, shapes)]


STEPS: dict[str, type[Any]] = {
    step.__name__: step for step in (Integers, FloatPatterns, Packed, Planes, Rans, Zstd, Lzma, Xz, Zlib)
}


def chain_to_json(chain: Chain) -> list[list[Any]]:
    """[[step name, {field: number}], ...] in the order of encoding."""
    return [[type(step).__name__, asdict(step)] for step in (chain.tensor, chain.codes, *chain.bytes)]


def chain_from_json(raw: Sequence[Sequence[Any]]) -> Chain:
    """The inverse of `chain_to_json`. Raises KeyError or TypeError for what is no chain."""
    tensor, codes, *smaller = (STEPS[name](**fields) for name, fields in raw)
    return Chain(tensor, codes, tuple(smaller))


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    flat = np.concatenate([array.reshape(-1) for array in arrays] or [np.zeros(0, np.int8)])
    return flat.astype(dtype)  # after joining, which would return to the machine's byte order


def _parted(flat: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
    native = flat.astype(flat.dtype.newbyteorder("="))
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    return [native[end - math.prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]
