"""The submitted model: one file with the network's configuration, its quantised tensors and constants for scoring.

magic "FWAY" | version u16 | header length u32 | header | sections | CRC-32 of all before, little-endian throughout.
The header is zlib-compressed JSON; each section holds tensors of one kind through one chain. Byte table:
`model/README.md`. Anything that is not exactly such a file is a FormatError, never wrong tensors.
"""

from __future__ import annotations

import json
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import GPTConfig, from_dict, to_dict
from model.quantized import Coded, Quantized, dequantize_all
from model.transforms import (
    ByteStep,
    Chain,
    FloatPatterns,
    Integers,
    Lzma,
    Packed,
    Planes,
    Rans,
    Zstd,
    chain_from_json,
    chain_to_json,
)
from model.weights import FormatError

MAGIC = b"FWAY"
VERSION = 1
PREFIX = struct.Struct("<4sHI")  # magic, version, header bytes
CHECKSUM = struct.Struct("<I")
DAMAGE = (ValueError, KeyError, TypeError, EOFError, struct.error, zlib.error, lzma.LZMAError)

SAMPLE_NUMBERS = 1 << 21

Chains = Callable[[str, int], Sequence[Chain]]  # (kind, bits) -> candidates, of which the smallest result is kept


@dataclass(frozen=True)
class Section:
    """Tensors of one kind, stored through one chain."""

    kind: str  # "codes", "scales" or "floats"
    bits: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape)
    chain: Chain
    bytes: int

    @property
    def weights(self) -> int:
        """Numbers in this section, before any coding."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def label(self) -> str:
        """What people read, such as "int6 codes"."""
        return {"codes": f"int{self.bits} codes", "scales": "row scales", "floats": f"fp{self.bits} tensors"}[self.kind]


def all_chains(kind: str, bits: int, level: int = 22) -> list[Chain]:
    """Every chain that is worth trying for a kind of section. `level` is zstd's."""
    chains = [planes_chain(kind, bits, Zstd(level)), planes_chain(kind, bits, Lzma())]
    return [Chain(Integers(), Rans(bits)), Chain(Integers(), Packed(bits)), *chains] if kind == "codes" else chains


def planes_chain(kind: str, bits: int, smaller: ByteStep) -> Chain:
    """Numbers of a kind of section as byte planes, made smaller by one step."""
    if kind == "codes":
        return Chain(Integers(), Planes(1), (smaller,))
    return Chain(FloatPatterns(bits), Planes(bits // 8), (smaller,))


def write_archive(
    path: Path,
    quantized: Quantized,
    config: GPTConfig,
    constants: Mapping[str, Any] | None = None,
    chains: Chains = all_chains,
) -> list[Section]:
    """Write the archive and return its section table. Equal content gives equal bytes.

    constants: JSON values that scoring needs and that no stream's length may tell, such as a declared TTT horizon.
    """
    groups: dict[tuple[str, int], dict[str, Tensor]] = {}
    for name, tensor in sorted(quantized.items()):
        if isinstance(tensor, Coded):
            groups.setdefault(("codes", tensor.bits), {})[name] = tensor.codes
            groups.setdefault(("scales", 16), {})[name] = tensor.scales
        else:
            groups.setdefault(("floats", tensor.itemsize * 8), {})[name] = tensor
    sections: list[Section] = []
    bodies: list[bytes] = []
    for (kind, bits), tensors in sorted(groups.items()):
        chain = smallest_chain(chains(kind, bits), list(tensors.values()))
        body = chain.encode(list(tensors.values()))
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
        sections.append(Section(kind, bits, shapes, chain, len(body)))
        bodies.append(body)
    header = {
        "network": to_dict(config),
        "constants": dict(sorted((constants or {}).items())),
        "sections": [[s.kind, s.bits, s.tensors, chain_to_json(s.chain), s.bytes] for s in sections],
    }
    text = zlib.compress(json.dumps(header, separators=(",", ":"), allow_nan=False).encode(), 9)
    content = PREFIX.pack(MAGIC, VERSION, len(text)) + text + b"".join(bodies)
    path.write_bytes(content + CHECKSUM.pack(zlib.crc32(content)))
    return sections


def smallest_chain(chains: Sequence[Chain], tensors: Sequence[Tensor]) -> Chain:
    """The chain whose result is smallest, judged on the first rows of each tensor where there are many numbers.

    zstd-22 and lzma need a minute for 27 million codes, only to lose.
    """
    if len(chains) == 1:
        return chains[0]
    share = min(1.0, SAMPLE_NUMBERS / max(1, sum(tensor.numel() for tensor in tensors)))
    sample: list[Tensor] = []
    for tensor in tensors:
        axis = max(0, tensor.ndim - 2)  # rows of codes, layers of scales
        sample.append(tensor.narrow(axis, 0, math.ceil(share * tensor.shape[axis])) if tensor.ndim else tensor)
    return min(chains, key=lambda chain: len(chain.encode(sample)))


def read_archive(path: Path) -> tuple[dict[str, Tensor], GPTConfig, dict[str, Any]]:
    """(fp32 tensors by parameter name, the network's configuration, constants). Raises FormatError for damage."""
    quantized, config, constants = read_quantized(path)
    try:
        return dequantize_all(quantized), config, constants
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def read_quantized(path: Path) -> tuple[dict[str, Coded | Tensor], GPTConfig, dict[str, Any]]:
    """As `read_archive`, with codes and scales as `write_archive` was given them, bit for bit."""
    header, sections, bodies = _open(path)
    codes: dict[str, tuple[Tensor, int]] = {}
    scales: dict[str, Tensor] = {}
    found: dict[str, Coded | Tensor] = {}
    try:
        for section, body in zip(sections, bodies, strict=True):
            names = [name for name, _ in section.tensors]
            tensors = section.chain.decode(body, [shape for _, shape in section.tensors])
            if section.kind == "codes":
                codes |= {name: (tensor, section.bits) for name, tensor in zip(names, tensors, strict=True)}
            else:
                target = scales if section.kind == "scales" else found
                target |= dict(zip(names, tensors, strict=True))
        found |= {name: Coded(tensor, scales[name], bits) for name, (tensor, bits) in codes.items()}
        return dict(sorted(found.items())), from_dict(header["network"]), header["constants"]
    except DAMAGE as error:
        raise _damaged(path, f"a section does not decode ({error!r})") from error


def list_sections(path: Path) -> list[Section]:
    """The section table, without decoding any tensor; the checksum is verified."""
    return _open(path)[1]


def _open(path: Path) -> tuple[dict[str, Any], list[Section], list[bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"an archive can be opened; {path.name}: {error}") from error
    if len(content) < PREFIX.size + CHECKSUM.size or content[:4] != MAGIC:
        raise _damaged(path, f"it starts with {content[:4]!r} and not with {MAGIC!r}")
    content, checksum = content[: -CHECKSUM.size], content[-CHECKSUM.size :]
    if CHECKSUM.pack(zlib.crc32(content)) != checksum:
        raise _damaged(path, f"its CRC-32 is {zlib.crc32(content):08x} and not {CHECKSUM.unpack(checksum)[0]:08x}")
    _, version, header_bytes = PREFIX.unpack_from(content)
    if version != VERSION:
        raise _damaged(path, f"its version is {version} and this code reads version {VERSION}")
    start = PREFIX.size + header_bytes
    try:
        header = json.loads(zlib.decompress(content[PREFIX.size : start]))
        sections = [
            Section(kind, bits, tuple((n, tuple(shape)) for n, shape in tensors), chain_from_json(chain), size)
            for kind, bits, tensors, chain, size in header["sections"]
        ]
    except DAMAGE as error:
        raise _damaged(path, f"its header does not parse ({error!r})") from error
    bodies: list[bytes] = []
    for section in sections:
        bodies.append(content[start : start + section.bytes])
        start += section.bytes
    if start != len(content):
        raise _damaged(path, f"its sections end at byte {start} and its content at {len(content)}")
    return header, sections, bodies


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(f"{path.name} is damaged or not a Fairway archive: {what}; restore or rebuild it")
