"""Our side of the parity with published scripts: cases, shared weights, the name map, and what is frozen for tests.

A case is a recipe's own network and optimizers, at reduced width. `benchmarks/parity.py` holds a published script to
it; `tests/model/test_parity.py` needs no script.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.load import load_recipe
from model.config import BigramConfig, GPTConfig, RefinerConfig
from model.gpt import GPT
from stages.train.config import Config
from stages.train.optimizers import Optimizers

SEED = "fairway-parity-1"
STEPS = 3
MOMENTUM = 0.95


@dataclass(frozen=True)
class Case:
    """One system on one batch, and on the batches of the steps that follow."""

    train: Config
    batch: int
    tokens: int
    steps: int = STEPS

    @property
    def network(self) -> GPTConfig:
        """The network's shape."""
        return self.train.network


@dataclass
class Computed:
    """What one side computed; tensors by the published names, in fp64. `changes`: by all steps together."""

    loss: float = 0.0
    logits: Tensor = field(default_factory=lambda: torch.zeros(()))
    gradients: dict[str, Tensor] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)


def narrow(network: GPTConfig, dim: int) -> GPTConfig:
    """The same layers and features at a small width."""
    return replace(
        network,
        dim=dim,
        heads=4,
        kv_heads=2,
        mlp_hidden=network.mlp_hidden * dim // network.dim,
        bigram=replace(network.bigram, buckets=512, dim=dim // 2) if network.bigram.buckets else BigramConfig(),
        value_embedding=replace(
            network.value_embedding, dim=dim // 4
        ),  # unlike the values, else theirs has no projection
        refiner=replace(network.refiner, latent=24, hidden=40) if network.refiner.latent else RefinerConfig(),
    )


def changed(group: Any, **fields: Any) -> Any:
    """A group of settings with other values, unchecked."""
    return group.model_copy(update=fields)


def cases_of(recipe: str) -> dict[str, Case]:
    train = load_recipe(recipe).recipe.train
    short = changed(train, network=narrow(train.network, 128))
    cases = {"short": Case(short, batch=2, tokens=128)}
    if recipe == "baseline":  # its script can also train an output matrix of its own
        head = changed(train.head, weight_decay=0.0)
        untied = changed(short, network=replace(short.network, tied_head=False), embed=changed(train.embed, lr=0.6))
        return {**cases, "untied head": Case(changed(untied, head=head), batch=2, tokens=128)}
    long = changed(train, network=narrow(train.network, 64))
    return {**cases, "beyond 1024 tokens": Case(long, batch=1, tokens=1100, steps=0)}


def published_size(recipe: str) -> Case:
    train = load_recipe(recipe).recipe.train
    return Case(train, batch=1, tokens=train.sequence_tokens, steps=0)


RECIPES = (
    "baseline",
    "pr398",
    "pr417",
    "pr417-int5",
    "pr714",
    "pr1033",
    "pr1033-recurrent",
    "pr1232",
    "pr1232-flow",
)
CASES = {recipe: cases_of(recipe) for recipe in RECIPES}

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
    "attn.gate": "blocks.{}.attn.attn_gate.weight",
    "attn.gate_bias": "blocks.{}.attn.attn_gate.bias",
    "attn.value_mix": "blocks.{}.attn.vr_lambda",
    "mlp.up": "blocks.{}.mlp.fc.weight",
    "mlp.down": "blocks.{}.mlp.proj.weight",
    "block.attn_scale": "blocks.{}.attn_scale",
    "block.mlp_scale": "blocks.{}.mlp_scale",
    "block.residual_mix": "blocks.{}.resid_mix",
    "ve.embed": "ve_shared.embed.weight",
    "ve.proj": "ve_shared.proj.weight",
    "ve.scale": "ve_shared.scale",
    "ve.layer_scales": "ve_layer_scales.{}",
    "vr.scales": "vrl_scales.{}",
    "refiner.down": "flow_refiner.down_proj.weight",
    "refiner.inner": "flow_refiner.velocity_net.0.weight",
    "refiner.inner_bias": "flow_refiner.velocity_net.0.bias",
    "refiner.outer": "flow_refiner.velocity_net.2.weight",
    "refiner.outer_bias": "flow_refiner.velocity_net.2.bias",
    "refiner.up": "flow_refiner.up_proj.weight",
    "refiner.gate": "flow_refiner.gate",
}
# Nothing reads layer 0's pair: the published one gets no gradient and stays, ours decays with its bank.
UNUSED = "blocks.0.attn.vr_lambda"


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


def banks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names: the inverse of `published`."""
    stacked: dict[str, Tensor] = {}
    for ours, template in PUBLISHED_NAMES.items():
        layers = [tensors[name] for i in range(len(tensors)) if (name := template.format(i)) in tensors]
        if layers:
            stacked[ours] = torch.stack(layers) if "{}" in template else layers[0]
    return stacked


def used(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In fp64, without what is no part of the function."""
    return {name: tensor.detach().double() for name, tensor in tensors.items() if name != UNUSED}


def uniform(label: str, shape: tuple[int, ...]) -> Tensor:
    """Reproducible numbers in [-1, 1), from the raw stream of Philox, which numpy promises never to change."""
    key = int.from_bytes(hashlib.sha256(f"{SEED}/{label}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape, dtype=np.int64)))
    return torch.from_numpy((raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).view(shape)


CENTRES = {
    "attn.q_gain": 1.5,
    "attn.gate_bias": 1.0,
    "attn.value_mix": 0.5,
    "bigram.scale": 0.7,
    "block.attn_scale": 1.0,
    "block.mlp_scale": 1.0,
    "block.residual_mix": 0.6,
    "refiner.gate": 0.3,
    "skip.weights": 1.0,
    "ve.scale": 0.7,
    "ve.layer_scales": 1.0,
}
SPREADS = {"embed.tokens": 0.3, "head.weight": 0.3, "smear.gate": 1.5, "bigram.embed": 1.0, "ve.embed": 1.0}
VECTORS = ("block.", "skip.", "attn.value_mix")  # of rank 2 or 3, and no matrices all the same


def shared_weight(name: str, shape: torch.Size) -> Tensor:
    """A weight that keeps every path of the network alive; fp32 values."""
    matrix = len(shape) > 1 and not name.startswith(VECTORS)
    spread = SPREADS.get(name, (3.0 / shape[-1]) ** 0.5 if matrix else 0.4)
    return (CENTRES.get(name, 0.0) + spread * uniform(name, tuple(shape))).float()


def shared_tokens(case: Case, step: int = 0) -> Tensor:
    """The batch of a step: [batch, tokens + 1] ids."""
    numbers = uniform(f"tokens/{step}" if step else "tokens", (case.batch, case.tokens + 1))
    return ((numbers + 1.0) / 2.0 * case.network.vocab).long()


def our_network(case: Case, dtype: torch.dtype) -> GPT:
    model = GPT(case.network)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shared_weight(name, parameter.shape))
    return model.to(dtype)


def our_loss(model: GPT, ids: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(ids[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()), logits.detach()


def compute_ours(case: Case, dtype: torch.dtype) -> Computed:
    """Loss, logits and gradients of the first batch, and what all steps change."""
    model = our_network(case, dtype)
    loss, logits = our_loss(model, shared_tokens(case))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    computed = Computed(loss.item(), logits.double(), used(published(gradients)))
    if case.steps:
        computed.changes = our_changes(case, dtype, str(dtype).removeprefix("torch."))
    return computed


def our_changes(
    case: Case, dtype: torch.dtype, newton_schulz: str, gradients: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What the recipe's optimizers add to every parameter in all steps.

    With `gradients` (published names), every step is by these, unclipped.
    """
    model = our_network(case, dtype)
    muon = changed(case.train.muon, dtype=newton_schulz, momentum_dtype="float32")  # as the script's, bf16 replaced
    config = changed(case.train, muon=muon)
    optimizers = Optimizers(model, config, torch.device("cpu"))
    optimizers.set(1.0, MOMENTUM)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(case.steps):
        if gradients is None:
            our_loss(model, shared_tokens(case, step))[0].backward()
        else:
            set_gradients(model, banks(gradients))
        if config.clip_norm and gradients is None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizers.step()
    return used(published({name: p.detach() - before[name] for name, p in model.named_parameters()}))


def set_gradients(model: nn.Module, gradients: dict[str, Tensor]) -> None:
    """Zero where a bank has more layers than `gradients` has, as with `UNUSED`."""
    for name, parameter in model.named_parameters():
        given = gradients[name].to(parameter.dtype).reshape(-1, *parameter.shape[1:])
        whole = torch.zeros_like(parameter)
        whole.view(-1, *parameter.shape[1:])[-len(given) :] = given
        parameter.grad = whole


def summary(name: str, tensor: Tensor) -> list[float]:
    """[norm, sum under pseudo-random signs]: an exchange, transposition or sign error changes the second."""
    signs = uniform(f"signs/{name}", tuple(tensor.shape)).sign()
    return [float(f"{value:.9g}") for value in (tensor.norm().item(), (tensor * signs).sum().item())]


def logit_places(case: Case) -> list[tuple[int, int, int]]:
    """Sixteen places of the logits, spread over the batch."""
    limits = (case.batch, case.tokens, case.network.vocab)
    return [
        tuple(int((u + 1) / 2 * n) for u, n in zip(row, limits, strict=True))
        for row in uniform("places", (16, 3)).tolist()
    ]


def frozen_values(case: Case, computed: Computed) -> dict[str, Any]:
    """The few numbers that stand for a result: the loss, sixteen logits, a summary of every bank."""
    return {
        "loss": computed.loss,
        "logits": [float(f"{computed.logits[place].item():.9g}") for place in logit_places(case)],
        "gradients": {name: summary(name, tensor) for name, tensor in banks(computed.gradients).items()},
        "changes": {name: summary(name, tensor) for name, tensor in banks(computed.changes).items()},
    }
