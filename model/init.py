"""Initial weights: one table, a rule per parameter name.

Each tensor draws from a generator of its own, seeded by (seed, name): switching a feature on or off leaves the initial
values of all other tensors as they were, so that two variants start from the same point.
Not as published: the published runs round every initial weight to bf16 once; ours keep fp32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.gpt import GPT

Fill = Callable[[Tensor, torch.Generator], object]


def constant(value: float) -> Fill:
    """Every weight is `value`."""
    return lambda weight, _: weight.fill_(value)


def normal(std: float) -> Fill:
    """Independent N(0, std^2)."""
    return lambda weight, generator: weight.normal_(0.0, std, generator=generator)


def orthogonal(gain: float) -> Fill:
    """Each matrix (of a bank, or alone) is gain times a random (semi-)orthogonal one."""

    def fill(weight: Tensor, generator: torch.Generator) -> None:
        for matrix_RC in weight.unbind() if weight.ndim == 3 else (weight,):
            nn.init.orthogonal_(matrix_RC, gain, generator=generator)

    return fill


def linear_default(weight: Tensor, generator: torch.Generator) -> None:
    """torch's default for nn.Linear: uniform within 1 / sqrt(inputs)."""
    bound = 1.0 / math.sqrt(weight.shape[-1])
    weight.uniform_(-bound, bound, generator=generator)


def mix_stream_only(weight_L2D: Tensor, _: torch.Generator) -> None:
    """All of the stream, nothing of the stem."""
    weight_L2D[:, 0] = 1.0
    weight_L2D[:, 1] = 0.0


def rules(model: GPT) -> dict[str, Fill]:
    """How each parameter starts. Matrices that write to the stream are zero: every block starts as the identity."""
    config = model.config
    matrix = orthogonal(1.0) if config.init.matrices == "orthogonal" else linear_default
    gain = config.init.auxiliary_gain or 1.0 / math.sqrt(2 * config.layers)
    auxiliary = constant(0.0) if config.init.auxiliary_zero else orthogonal(gain)
    zero, half, one = constant(0.0), constant(0.5), constant(1.0)
    return {
        "embed.tokens": normal(config.init.embed_std),
        "head.weight": zero,
        "bigram.embed": zero,
        "bigram.proj": auxiliary,
        "bigram.scale": constant(config.bigram.scale_init),
        "memory.tokens": normal(config.init.memory_std),
        "smear.gate": zero,
        "attn.q": matrix,
        "attn.k": matrix,
        "attn.v": matrix,
        "attn.o": zero,
        "attn.q_gain": constant(config.qk_gain),
        "attn.gate": zero,
        "attn.gate_bias": constant(config.init.attention_gate_bias),
        "attn.value_mix": half,
        "ve.embed": normal(config.init.value_embed_std),
        "ve.proj": auxiliary,
        "ve.scale": constant(config.value_embedding.scale_init),
        "ve.layer_scales": one,
        "vr.scales": zero,
        "mlp.up": matrix,
        "mlp.down": zero,
        "block.attn_scale": one,
        "block.mlp_scale": one,
        "block.residual_mix": mix_stream_only,
        "skip.weights": one,
        "refiner.down": orthogonal(1.0),
        "refiner.inner": orthogonal(1.0),
        "refiner.inner_bias": zero,
        "refiner.outer": zero,
        "refiner.outer_bias": zero,
        "refiner.up": orthogonal(1.0),
        "refiner.gate": constant(config.refiner.gate_init),
    }


@torch.no_grad()
def initialise(model: GPT, seed: int) -> None:
    """Set every parameter, drawn on the CPU in fp32 so that all devices start alike."""
    fills = rules(model)
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        weight = torch.empty(parameter.shape)
        fills[name](weight, generator)
        parameter.copy_(weight)
