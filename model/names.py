"""Names and shapes of every parameter of a network, from its configuration alone, and the globs that select from them.

Standard library only, so that a recipe is checked, and its parameters are counted, before anything heavy is imported.

Globs see virtual names: parameters that are stacked over layers appear once per layer, `blocks.<layer>.attn.q`,
`blocks.<layer>.attn_scale`, the others by their own name. So "blocks.[01].*" means the two layers 0 and 1 and nothing
else ("freeze 2 blocks" has meant both the first and all but the last two), "*.attn.k" all key matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import GPTConfig

BANKS = ("attn.", "mlp.", "block.")  # parameters with one slice per layer along their first dimension

Shape = tuple[int, ...]


def parameter_shapes(config: GPTConfig) -> dict[str, Shape]:
    """Every parameter of the network, in no particular order."""
    layers, dim, heads, kv = config.layers, config.dim, config.heads, config.kv_dim
    shapes: dict[str, Shape] = {
        "embed.tokens": (config.vocab, dim),
        "attn.q": (layers, dim, dim),
        "attn.k": (layers, kv, dim),
        "attn.v": (layers, kv, dim),
        "attn.o": (layers, dim, dim),
        "attn.q_gain": (layers, heads),
        "mlp.up": (layers, config.mlp_hidden, dim),
        "mlp.down": (layers, dim, config.mlp_hidden),
        "block.attn_scale": (layers, dim),
        "block.mlp_scale": (layers, dim),
    }
    if not config.tied_head:
        shapes["head.weight"] = (config.vocab, dim)
    if config.residual_mix:
        shapes["block.residual_mix"] = (layers, 2, dim)
    if config.unet_skips and layers > 1:
        shapes["skip.weights"] = (layers // 2, dim)
    if config.smear:
        shapes["smear.gate"] = (dim,)
    if config.memory_tokens:
        shapes["memory.tokens"] = (config.memory_tokens, dim)
    if width := config.bigram.buckets and config.bigram.dim:
        shapes |= {"bigram.embed": (config.bigram.buckets, width), "bigram.proj": (dim, width), "bigram.scale": ()}
    if config.gated_attention:
        shapes |= {"attn.gate": (layers, heads, dim), "attn.gate_bias": (layers, heads)}
    return shapes | _values(config) | _refiner(config)


def _values(config: GPTConfig) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    embedding = config.value_embedding
    if embedding.layers:
        shapes |= {"ve.embed": (config.vocab, embedding.dim), "ve.proj": (config.kv_dim, embedding.dim)}
        shapes |= {"ve.scale": (), "ve.layer_scales": (len(embedding.layers),)}
    if config.value_residual == "additive":
        shapes["vr.scales"] = (config.layers - 1,)
    elif config.value_residual == "mix":
        shapes["attn.value_mix"] = (config.layers, 2)
    return shapes


def _refiner(config: GPTConfig) -> dict[str, Shape]:
    latent, hidden, dim = config.refiner.latent, config.refiner.hidden, config.dim
    if not latent:
        return {}
    shapes: dict[str, Shape] = {"down": (latent, dim), "inner": (hidden, latent), "inner_bias": (hidden,)}
    shapes |= {"outer": (latent, hidden), "outer_bias": (latent,), "up": (dim, latent), "gate": ()}
    return {f"refiner.{name}": shape for name, shape in shapes.items()}


def parameter_count(config: GPTConfig) -> int:
    """How many numbers the network learns."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def virtual_names(name: str, shape: Sequence[int]) -> list[str]:
    """The names that globs see: one per layer of a bank, else the parameter's own."""
    if not name.startswith(BANKS):
        return [name]
    return [f"blocks.{layer}.{name.removeprefix('block.')}" for layer in range(shape[0])]


def all_virtual_names(config: GPTConfig) -> list[str]:
    """Every name that a glob may match in this network."""
    return [seen for name, shape in parameter_shapes(config).items() for seen in virtual_names(name, shape)]


def matching(patterns: Iterable[str], known: Sequence[str], field: str) -> set[str]:
    """The known names that any pattern matches. ValueError for a pattern that matches none; `field` is whose it is."""
    found = set[str]()
    for pattern in patterns:
        matched = {name for name in known if fnmatchcase(name, pattern)}
        if not matched:
            near = get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise ValueError(
                f"{field} names parameters that exist; {pattern!r} matches none; nearest: {', '.join(near)}"
            )
        found |= matched
    return found
