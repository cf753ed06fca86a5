"""A network's quantised tensors: integer codes with row scales for large ones, fp16 or fp32 for the rest.

On disk they are a safetensors file: `<name>.codes` int8 and `<name>.scales` fp16 for the coded ones, `<name>` for the
floats, and `__metadata__["bits"]` = JSON {name: bits}. Shapes: a bank is [L, R, C] with scales [L, R]; tables drop L.
A bank whose layers are stored differently is stored matrix by matrix, as `blocks.<layer>.<bank>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.grid import dequantize
from model.weights import FormatError, load_weights, save_weights


@dataclass(frozen=True)
class Coded:
    """A tensor on a grid."""

    codes: Tensor  # int8 [..., R, C]
    scales: Tensor  # fp16 [..., R]
    bits: int  # codes lie in [-2^(bits-1), 2^(bits-1))

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int8 or self.scales.dtype != torch.float16:
            raise ValueError(f"codes are int8 and scales float16; got {self.codes.dtype} and {self.scales.dtype}")
        if self.codes.ndim < 2 or self.codes.shape[:-1] != self.scales.shape:
            shapes = f"{tuple(self.codes.shape)} and {tuple(self.scales.shape)}"
            raise ValueError(f"codes [..., R, C] have scales [..., R]; got {shapes}")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"codes have 2 to 8 bits; got {self.bits}")
        half = 1 << (self.bits - 1)
        if self.codes.numel() and not -half <= int(self.codes.min()) <= int(self.codes.max()) < half:
            raise ValueError(f"codes of {self.bits} bits lie in [{-half}, {half}); got {self.codes.aminmax()}")

    def dequantize(self) -> Tensor:
        """fp32 weights, the codes' shape."""
        return dequantize(self.codes, self.scales)


Quantized = Mapping[str, Coded | Tensor]  # by parameter name; a Tensor is fp16 or fp32


def dequantize_all(quantized: Quantized) -> dict[str, Tensor]:
    """Every tensor as fp32, and banks whole: what a network loads. ValueError for a bank that lacks a layer."""
    found: dict[str, Tensor] = {}
    layers: dict[str, dict[int, Tensor]] = {}
    for name, stored in quantized.items():
        tensor = stored.dequantize() if isinstance(stored, Coded) else stored.float()
        if name.startswith("blocks."):
            _, layer, bank = name.split(".", 2)
            layers.setdefault(bank, {})[int(layer)] = tensor
        else:
            found[name] = tensor
    for bank, matrices in layers.items():
        if sorted(matrices) != list(range(len(matrices))):
            raise ValueError(f"a bank is stored with all of its layers; {bank} has {sorted(matrices)}")
        found[bank] = torch.stack([matrices[layer] for layer in range(len(matrices))])
    return found


def equal(a: Quantized, b: Quantized) -> bool:
    """Whether both hold the same names, kinds and bits, with NaN payloads and signs of zero told apart."""
    return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)


def _equal(a: Coded | Tensor, b: Coded | Tensor) -> bool:
    if isinstance(a, Coded) and isinstance(b, Coded):
        return a.bits == b.bits and _same_bytes(a.codes, b.codes) and _same_bytes(a.scales, b.scales)
    return isinstance(a, Tensor) and isinstance(b, Tensor) and _same_bytes(a, b)


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    same_kind = a.dtype == b.dtype and a.shape == b.shape
    return same_kind and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def save_quantized(path: Path, quantized: Quantized, metadata: Mapping[str, str] | None = None) -> None:
    """Write `quantized` and string `metadata` ("network": the network's config as JSON) to `path`."""
    tensors: dict[str, Tensor] = {}
    bits: dict[str, int] = {}
    for name, tensor in sorted(quantized.items()):
        if isinstance(tensor, Coded):
            tensors |= {f"{name}.codes": tensor.codes, f"{name}.scales": tensor.scales}
            bits[name] = tensor.bits
        else:
            tensors[name] = tensor
    save_weights(path, tensors, {**(metadata or {}), "bits": json.dumps(bits)})


def load_quantized(path: Path) -> tuple[dict[str, Coded | Tensor], dict[str, str]]:
    """Read (quantised tensors, metadata). Raises FormatError for a file that is damaged or of another kind."""
    tensors, metadata = load_weights(path)
    try:
        bits: dict[str, int] = json.loads(metadata.pop("bits"))
        coded: dict[str, Coded | Tensor] = {
            name: Coded(tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scales"), width)
            for name, width in bits.items()
        }
    except (KeyError, ValueError, AttributeError) as error:
        raise FormatError(f"{path.name} holds quantised tensors as `quantize` writes them; {error!r}") from error
    return dict(sorted((coded | tensors).items())), metadata
