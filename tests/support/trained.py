"""Weights that look trained, without training: for tests and benchmarks of what makes them small."""

from __future__ import annotations

import io

import torch

from model.grid import Grid, choose_scales, quantize
from model.quantized import Coded, Quantized

# Relative spread of column sizes, measured on a 6-layer network of width 256 after 700 steps (4 million weights);
# rows spread by 0.1 to 0.15 there.
COLUMN_SPREAD = {
    "attn.q": 0.15,
    "attn.k": 0.22,
    "attn.v": 0.29,
    "attn.o": 0.09,
    "mlp.up": 0.12,
    "mlp.down": 0.41,
    "embed.tokens": 0.1,
    "bigram.embed": 0.1,
}
ROW_SPREAD = 0.12


def trained_like(shape: tuple[int, ...], columns: float, rows: float, seed: int) -> torch.Tensor:
    """Gaussian weights [..., R, C] whose columns and rows differ in size, log-normally, by these spreads."""
    generator = torch.Generator().manual_seed(seed)
    w = 0.1 * torch.randn(*shape, generator=generator)
    w *= torch.exp(columns * torch.randn(*shape[:-2], 1, shape[-1], generator=generator))
    return w * torch.exp(rows * torch.randn(*shape[:-1], 1, generator=generator))


def trained_network(
    layers: int, dim: int, vocab: int = 1024, buckets: int = 0, spread: float = 1.0
) -> dict[str, torch.Tensor]:
    """The tensors of a network by name. `spread` 0 makes them plain Gaussian: nothing for a context to learn."""
    kv, hidden = dim // 2, 3 * dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn.q": (layers, dim, dim),
        "attn.k": (layers, kv, dim),
        "attn.v": (layers, kv, dim),
        "attn.o": (layers, dim, dim),
        "mlp.up": (layers, hidden, dim),
        "mlp.down": (layers, dim, hidden),
        "embed.tokens": (vocab, dim),
    }
    if buckets:
        shapes["bigram.embed"] = (buckets, dim // 4)
    tensors = {
        name: trained_like(shape, spread * COLUMN_SPREAD[name], spread * ROW_SPREAD, seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    generator = torch.Generator().manual_seed(99)
    for name in ("block.attn_scale", "block.mlp_scale"):
        tensors[name] = 1 + 0.1 * torch.randn(layers, dim, generator=generator)
    return tensors


def coded(w: torch.Tensor, bits: int) -> Coded:
    """Codes at the rows' largest magnitudes."""
    grid = Grid(bits=bits)
    scales = choose_scales(w.abs().amax(-1), grid)
    return Coded(quantize(w, scales, grid), scales, bits)


def coded_network(tensors: dict[str, torch.Tensor]) -> dict[str, Coded | torch.Tensor]:
    """int6 banks, int8 tables, fp16 vectors, as the published runs store them."""
    bits = {name: 8 if name.endswith(("tokens", "embed")) else 6 for name in COLUMN_SPREAD}
    return {name: coded(w, bits[name]) if name in bits else w.half() for name, w in tensors.items()}


def published_blob(quantized: Quantized) -> bytes:
    """What the published runs hand to zstd or lzma: unstacked tensors in a dict, through `torch.save`."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in quantized.items():
        if isinstance(tensor, Coded) and tensor.codes.ndim == 3:
            for layer, (codes, scales) in enumerate(zip(tensor.codes, tensor.scales, strict=True)):
                tensors |= {f"blocks.{layer}.{name}.q": codes.clone(), f"blocks.{layer}.{name}.scale": scales.clone()}
        elif isinstance(tensor, Coded):
            tensors |= {f"{name}.q": tensor.codes, f"{name}.scale": tensor.scales}
        else:
            tensors[name] = tensor
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()
