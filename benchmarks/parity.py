"""Do our network and our Muon compute what the published scripts compute?

    python benchmarks/parity.py pr398 CHECKOUT [--freeze]      CHECKOUT: a git directory of the challenge's repository
    python benchmarks/parity.py baseline CHECKOUT [--freeze]   (pull-request refs included), or one train_gpt.py

The published script is executed as a module, never copied. It gets our weights through a name map and the same batch;
logits, loss, the gradient of every tensor and two Muon steps are compared, three times:
  float64   both sides in fp64 around fp32 rotary tables: any difference in the formulas shows far above 1e-10;
  float32   both sides in fp32: what is left must be rounding, which the script's own fp32 - fp64 distance measures;
  bfloat16  the Muon step only, with Newton-Schulz in bf16 as published.
The script hard-codes bf16 casts, so its text is changed before it is compiled: `SUBSTITUTIONS` says all of it.
FlashAttention is stubbed by torch's attention in the dtype that it is given. Both sides run at reduced width, on a CPU.
`--freeze` writes what the script computed in fp32 to tests/model/parity/, and `make test` holds our code to that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
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
FROZEN = Path(__file__).resolve().parents[1] / "tests" / "model" / "parity"
DTYPES = {"float64": torch.float64, "float32": torch.float32}
SUBSTITUTIONS = {
    "float64": (("torch.bfloat16", "torch.float64"), (".bfloat16()", ".double()"), (".float()", ".double()")),
    "float32": (("torch.bfloat16", "torch.float32"), (".bfloat16()", ".float()")),
    "bfloat16": (),
}
MUON = {"lr": 0.025, "momentum": 0.95, "nesterov": True}


@dataclass(frozen=True)
class Case:
    """One network on one batch."""

    config: GPTConfig
    batch: int
    tokens: int
    weight_decay: float


@dataclass(frozen=True)
class Script:
    """A published training script, the networks that it is compared on, and how its constructor is called."""

    ref: str
    sha256: str
    cases: dict[str, Case]
    arguments: Callable[[GPTConfig], dict[str, Any]]
    muon: Callable[[Case], dict[str, Any]]


@dataclass
class Computed:
    """What one side computed; tensors by the published names, in fp64."""

    loss: float = 0.0
    logits: Tensor = field(default_factory=lambda: torch.zeros(()))
    gradients: dict[str, Tensor] = field(default_factory=dict)
    updates: dict[str, Tensor] = field(default_factory=dict)


SMALL = GPTConfig(
    layers=11,
    dim=128,
    heads=4,
    kv_heads=2,
    mlp_hidden=384,
    rope=RopeConfig(dims=16, reference_tokens=1024),
    bigram=BigramConfig(buckets=512, dim=64),
    smear=True,
    unet_skips=True,
    residual_mix=True,
    ln_scale=True,
)
NAIVE = GPTConfig(layers=9, dim=128, heads=4, kv_heads=2, mlp_hidden=256, unet_skips=True, residual_mix=True)


def common_arguments(config: GPTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab,
        "num_layers": config.layers,
        "model_dim": config.dim,
        "num_heads": config.heads,
        "num_kv_heads": config.kv_heads,
        "mlp_mult": config.mlp_hidden // config.dim,
        "tie_embeddings": config.tied_head,
        "tied_embed_init_std": config.init.embed_std,
        "logit_softcap": config.softcap,
        "rope_base": config.rope.base,
        "qk_gain_init": config.qk_gain,
    }


def pr398_arguments(config: GPTConfig) -> dict[str, Any]:
    return common_arguments(config) | {
        "bigram_vocab_size": config.bigram.buckets,
        "bigram_dim": config.bigram.dim,
        "rope_dims": config.rope.dims,
        "ln_scale": config.ln_scale,
    }


SCRIPTS = {
    "pr398": Script(
        ref="refs/pull/398/head:records/track_10min_16mb/2026-03-21_11L_EMA_TTT20ep_1.1213/train_gpt.py",
        sha256="106e2c71197e169491d3830ab79a2941f0b3063575c2f35c050423c6e5ad4540",
        cases={
            "short": Case(SMALL, batch=2, tokens=128, weight_decay=0.04),
            "beyond the reference length": Case(SMALL, batch=1, tokens=1280, weight_decay=0.04),
        },
        arguments=pr398_arguments,
        muon=lambda case: {**MUON, "backend_steps": 5, "weight_decay": case.weight_decay},
    ),
    "baseline": Script(
        ref="refs/heads/main:train_gpt.py",
        sha256="c6cae5e767aa0464e8767620f3bbdb08048c99f4b7ae0f0e146dd9b17e68e673",
        cases={
            "tied head": Case(NAIVE, batch=2, tokens=128, weight_decay=0.0),
            "untied head": Case(replace(NAIVE, tied_head=False), batch=2, tokens=128, weight_decay=0.0),
        },
        arguments=common_arguments,
        muon=lambda _: {**MUON, "backend_steps": 5},
    ),
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


class Published:
    """A published script, loaded in one precision."""

    def __init__(self, script: Script, source: str, precision: str) -> None:
        self.script, self.dtype = script, DTYPES.get(precision, torch.float32)
        for old, new in SUBSTITUTIONS[precision]:
            if old not in source:
                raise SystemExit(f"the script no longer holds {old!r}, which this tool replaces; check SUBSTITUTIONS")
            source = source.replace(old, new)
        flash = types.ModuleType("flash_attn_interface")
        flash.__dict__["flash_attn_func"] = stub_flash_attention
        sys.modules["flash_attn_interface"] = flash
        self.module = types.ModuleType(f"published_{precision}")
        exec(compile(source, self.module.__name__, "exec"), self.module.__dict__)
        self.seen_logits = torch.zeros(())
        # The script's `F`: the norm's eps as it is in fp32, and a look at the logits that it keeps to itself.
        self.module.__dict__["F"] = types.SimpleNamespace(
            **vars(functional) | {"rms_norm": fp32_eps_norm, "cross_entropy": self._cross_entropy}
        )

    def _cross_entropy(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        self.seen_logits = logits.detach()
        return functional.cross_entropy(logits, targets, reduction=reduction)

    def network(self, case: Case) -> torch.nn.Module:
        """Their network with our weights; buffers (rotary frequencies) stay fp32."""
        model = self.module.GPT(**self.script.arguments(case.config))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        weights = published(dict(our_network(case, self.dtype).named_parameters()))
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if missing or unexpected:
            raise SystemExit(f"the name map must cover every tensor; missing {missing}, unexpected {unexpected}")
        return model

    def compute(self, case: Case) -> Computed:
        model, ids = self.network(case), shared_tokens(case)
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        logits = self.seen_logits.view(case.batch, case.tokens, -1).double()
        return Computed(loss.item(), logits, double(gradients))

    def updates(self, case: Case, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """What two steps of their Muon add to each matrix."""
        parameters = dict(self.network(case).named_parameters())
        names = [
            n for n in parameters if n.endswith(("c_q.weight", "c_k.weight", "c_v.weight", "fc.weight", "proj.weight"))
        ]
        before = {name: parameters[name].detach().clone() for name in names}
        optimizer = self.module.Muon([parameters[name] for name in names], **self.script.muon(case))
        for name in names:
            parameters[name].grad = gradients[name].to(self.dtype)
        for _ in range(2):
            optimizer.step()
        return double({name: parameters[name].detach() - before[name] for name in names})


def stub_flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """FlashAttention's contract on [batch, time, head, dim], each key head serving consecutive query heads."""
    repeats = q.shape[2] // k.shape[2]
    heads_first = (q.transpose(1, 2), *(x.repeat_interleave(repeats, dim=2).transpose(1, 2) for x in (k, v)))
    return functional.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)


def fp32_eps_norm(x: Tensor, shape: tuple[int, ...], eps: float | None = None) -> Tensor:
    return functional.rms_norm(x, shape, eps=torch.finfo(torch.float32).eps if eps is None else eps)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def worst(got: dict[str, Tensor], want: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error over tensors, and where."""
    if got.keys() != want.keys():
        raise SystemExit(f"both sides must have the same tensors; they differ in {sorted(got.keys() ^ want.keys())}")
    return max((relative(got[name], want[name]), name) for name in want)


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


def compare(script: Script, source: str) -> dict[str, Any]:
    """Print the comparison of every case; return what the script computed in fp32."""
    sides = {precision: Published(script, source, precision) for precision in SUBSTITUTIONS}
    frozen: dict[str, Any] = {}
    for name, case in script.cases.items():
        theirs = {precision: sides[precision].compute(case) for precision in DTYPES}
        print(f"\n{name}: {case.config.layers} layers of width {case.config.dim}, {case.batch} x {case.tokens} tokens")
        for precision, dtype in DTYPES.items():
            ours, want = compute_ours(case, dtype), theirs[precision]
            print(f"  {precision}  loss {ours.loss:.9f} and {want.loss:.9f}, apart {abs(ours.loss - want.loss):.2g}")
            print(f"    logits    largest difference {(ours.logits - want.logits).abs().max():.2g}")
            print("    gradients worst relative error {:.2g} ({})".format(*worst(ours.gradients, want.gradients)))
        noise = worst(theirs["float32"].gradients, theirs["float64"].gradients)
        print("    the script's own fp32 rounding, for scale: {:.2g} ({})".format(*noise))
        gradients = theirs["float32"].gradients
        for precision, side in sides.items():
            arithmetic = getattr(torch, precision)
            want = side.updates(case, gradients)
            ours = our_updates(case, side.dtype, arithmetic, gradients)
            print(f"  {precision}  two Muon steps, worst relative error {{:.2g}} ({{}})".format(*worst(ours, want)))
            if precision == "float32":
                theirs["float32"].updates = want
        frozen[name] = frozen_values(case, theirs["float32"])
    return frozen


def read_script(script: Script, checkout: Path) -> str:
    """The script's text, from a file or from a git directory; refuses another version."""
    if checkout.is_file():
        raw = checkout.read_bytes()
    else:
        raw = subprocess.run(["git", "-C", checkout, "show", script.ref], check=True, capture_output=True).stdout
    if (sha256 := hashlib.sha256(raw).hexdigest()) != script.sha256:
        raise SystemExit(f"parity is with the script of sha256 {script.sha256}; {checkout} holds {sha256}")
    return raw.decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--freeze", action="store_true", help="write the script's fp32 values for `make test`")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    script = SCRIPTS[arguments.script]
    cases = compare(script, read_script(script, arguments.checkout))
    if arguments.freeze:
        FROZEN.mkdir(exist_ok=True)
        origin = {"script": script.ref, "sha256": script.sha256, "seed": SEED, "torch": torch.__version__}
        text = json.dumps({**origin, "cases": cases}, indent=1) + "\n"
        (FROZEN / f"{arguments.script}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
