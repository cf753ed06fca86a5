"""Our side of the parity with published scripts: cases, shared weights, the name map, and what is frozen for tests.

`benchmarks/parity.py` holds a published script to this; `tests/model/test_parity.py` needs no script.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.config import BigramConfig, GPTConfig, RopeConfig
from model.gpt import GPT
from stages.train.groups import parameter_groups
from stages.train.muon import Muon

SEED = "fairway-parity-1"
MUON = {"lr": 0.025, "momentum": 0.95, "nesterov": True}


@dataclass(frozen=True)
class Case:
    """One network on one batch."""

    config: GPTConfig
    batch: int
    tokens: int
    weight_decay: float


@dataclass
class Computed:
    """What one side computed; tensors by the published names, in fp64."""

    loss: float = 0.0
    logits: Tensor = field(default_factory=lambda: torch.zeros(()))
    gradients: dict[str, Tensor] = field(default_factory=dict)
    updates: dict[str, Tensor] = field(default_factory=dict)


BASE_STACK = GPTConfig(
    rope=RopeConfig(dims=16, reference_tokens=1024),
    bigram=BigramConfig(buckets=2048),
    smear=True,
    unet_skips=True,
    residual_mix=True,
    ln_scale=True,
)
NAIVE = GPTConfig(layers=9, mlp_hidden=1024, unet_skips=True, residual_mix=True)
NARROW = {"dim": 128, "heads": 4, "kv_heads": 2}
SMALL = replace(BASE_STACK, **NARROW, mlp_hidden=384, bigram=BigramConfig(buckets=512, dim=64))
SMALL_NAIVE = replace(NAIVE, **NARROW, mlp_hidden=256)

CASES = {
    "pr398": {
        "short": Case(SMALL, batch=2, tokens=128, weight_decay=0.04),
        "beyond the reference length": Case(SMALL, batch=1, tokens=1280, weight_decay=0.04),
    },
    "baseline": {
        "tied head": Case(SMALL_NAIVE, batch=2, tokens=128, weight_decay=0.0),
        "untied head": Case(replace(SMALL_NAIVE, tied_head=False), batch=2, tokens=128, weight_decay=0.0),
    },
}
PUBLISHED_SIZE = {
    "pr398": Case(BASE_STACK, batch=1, tokens=2048, weight_decay=0.04),
    "baseline": Case(NAIVE, batch=1, tokens=1024, weight_decay=0.0),
}

PUBLISHED_NAMES = {
    "embed.tokens": "tok_emb.weight",
    "head.weight": "lm_head.weight",
    "bigram.embed": "bigram.embed.weight",
    "bigram.proj": "bigram.proj.weight",
    "bigram.scale": "bigram.scale",
    "smear.gate": "smear.gate",
    "skip.weights": "skip_weights",
    "attn.q": "blocks.{}.attn.c_q.weight",
    "attn.k": "blocks.{}.attn.c_k.weight",
    "attn.v": "blocks.{}.attn.c_v.weight",
    "attn.o": "blocks.{}.attn.proj.weight",
    "attn.q_gain": "blocks.{}.attn.q_gain",
    "mlp.up": "blocks.{}.mlp.fc.weight",
    "mlp.down": "blocks.{}.mlp.proj.weight",
    "block.attn_scale": "blocks.{}.attn_scale",
    "block.mlp_scale": "blocks.{}.mlp_scale",
    "block.residual_mix": "blocks.{}.resid_mix",
}


def published(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the published names: banks become one tensor per layer."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        template = PUBLISHED_NAMES[name]
        if "{}" in template:
            tensors |= {template.format(layer): part for layer, part in enumerate(tensor.detach())}
        else:
            tensors[template] = tensor.detach()
    return tensors


def uniform(label: str, shape: tuple[int, ...]) -> Tensor:
    """Reproducible numbers in [-1, 1), from the raw stream of Philox, which numpy promises never to change."""
    key = int.from_bytes(hashlib.sha256(f"{SEED}/{label}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape, dtype=np.int64)))
    return torch.from_numpy((raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).view(shape)


def shared_weight(name: str, shape: torch.Size) -> Tensor:
    """A weight that keeps every path of the network alive; fp32 values."""
    centre = {"attn.q_gain": 1.5, "bigram.scale": 0.7, "block.residual_mix": 0.6, "skip.weights": 1.0}.get(name, 0.0)
    spread = {"embed.tokens": 0.3, "head.weight": 0.3, "smear.gate": 1.5, "bigram.embed": 1.0}.get(name, 0.4)
    if name in ("block.attn_scale", "block.mlp_scale"):
        centre = 1.0
    if name == "bigram.proj" or (name.startswith(("attn.", "mlp.")) and len(shape) == 3):
        spread = (3.0 / shape[-1]) ** 0.5
    return (centre + spread * uniform(name, tuple(shape))).float()


def shared_tokens(case: Case) -> Tensor:
    """One batch of [batch, tokens + 1] ids."""
    numbers = uniform("tokens", (case.batch, case.tokens + 1))
    return ((numbers + 1.0) / 2.0 * case.config.vocab).long()


def our_network(case: Case, dtype: torch.dtype) -> GPT:
    model = GPT(case.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shared_weight(name, parameter.shape))
    return model.to(dtype)


def compute_ours(case: Case, dtype: torch.dtype) -> Computed:
    model, ids = our_network(case, dtype), shared_tokens(case)
    logits = model(ids[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Computed(loss.item(), logits.detach().double(), double(published(gradients)))


def our_updates(
    case: Case, dtype: torch.dtype, arithmetic: torch.dtype, gradients: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What two Muon steps with these gradients (published names) add to each matrix."""
    model = our_network(case, dtype)
    matrices = dict(parameter_groups(model)["matrix"])
    before = {name: p.detach().clone() for name, p in matrices.items()}
    optimizer = Muon(matrices.values(), **MUON, weight_decay=case.weight_decay, dtype=arithmetic)
    for name, parameter in matrices.items():
        template = PUBLISHED_NAMES[name]
        parts = [gradients[template.format(i)] for i in range(len(parameter))] if "{}" in template else None
        parameter.grad = (torch.stack(parts) if parts else gradients[template]).to(dtype)
    for _ in range(2):
        optimizer.step()
    return double(published({name: p.detach() - before[name] for name, p in matrices.items()}))


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().double() for name, tensor in tensors.items()}


def summary(name: str, tensor: Tensor) -> list[float]:
    """[norm, sum under pseudo-random signs]: an exchange, transposition or sign error changes the second."""
    signs = uniform(f"signs/{name}", tuple(tensor.shape)).sign()
    return [float(f"{value:.9g}") for value in (tensor.norm().item(), (tensor * signs).sum().item())]


def logit_places(case: Case) -> list[tuple[int, int, int]]:
    """Sixteen places of the logits, spread over the batch."""
    limits = (case.batch, case.tokens, case.config.vocab)
    return [
        tuple(int((u + 1) / 2 * n) for u, n in zip(row, limits, strict=True))
        for row in uniform("places", (16, 3)).tolist()
    ]


def banks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names: the inverse of `published`."""
    stacked: dict[str, Tensor] = {}
    for ours, template in PUBLISHED_NAMES.items():
        layers = [tensors[name] for i in range(len(tensors)) if (name := template.format(i)) in tensors]
        if layers:
            stacked[ours] = torch.stack(layers) if "{}" in template else layers[0]
    return stacked


def frozen_values(case: Case, computed: Computed) -> dict[str, Any]:
    """The few numbers that stand for a result: the loss, sixteen logits, a summary of every bank."""
    return {
        "loss": computed.loss,
        "logits": [computed.logits[place].item() for place in logit_places(case)],
        "gradients": {name: summary(name, tensor) for name, tensor in banks(computed.gradients).items()},
        "updates": {name: summary(name, tensor) for name, tensor in banks(computed.updates).items()},
    }
