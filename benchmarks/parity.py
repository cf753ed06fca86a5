"""Do our network and our Muon compute what the published scripts compute?

    python benchmarks/parity.py pr398 CHECKOUT [--freeze]      CHECKOUT: a git directory of the challenge's repository
    python benchmarks/parity.py baseline CHECKOUT [--freeze]   (pull-request refs included), or one train_gpt.py

The published script is executed as a module, never copied. It gets our weights through a name map and the same batch;
logits, loss, the gradient of every tensor and two Muon steps are compared, three times:
  float64   both sides in fp64 around fp32 rotary tables: any difference in the formulas shows far above 1e-10;
  float32   both sides in fp32: what is left must be rounding, which the script's own fp32 - fp64 distance measures;
  bfloat16  the Muon steps only, with Newton-Schulz in bf16 as published.
The script hard-codes bf16 casts, so its text is changed before it is compiled: `SUBSTITUTIONS` says all of it.
FlashAttention is stubbed by torch's attention in the dtype that it is given. Both sides run on a CPU, at reduced width
and once at the published size. `--freeze` writes what the script computed in fp32 at reduced width to
tests/model/parity/, and `make test` holds our code to that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parity_cases import (
    CASES,
    MUON,
    PUBLISHED_SIZE,
    SEED,
    Case,
    Computed,
    compute_ours,
    double,
    frozen_values,
    our_network,
    our_updates,
    published,
    shared_tokens,
)
from torch import Tensor
from torch.nn import functional

from model.config import GPTConfig

FROZEN = Path(__file__).resolve().parents[1] / "tests" / "model" / "parity"
DTYPES = {"float64": torch.float64, "float32": torch.float32}
SUBSTITUTIONS = {
    "float64": (("torch.bfloat16", "torch.float64"), (".bfloat16()", ".double()"), (".float()", ".double()")),
    "float32": (("torch.bfloat16", "torch.float32"), (".bfloat16()", ".float()")),
    "bfloat16": (),
}
MATRICES = ("c_q.weight", "c_k.weight", "c_v.weight", "fc.weight", "proj.weight")


@dataclass(frozen=True)
class Script:
    """A published training script, and how its network and its Muon are constructed."""

    ref: str
    sha256: str
    arguments: Callable[[GPTConfig], dict[str, Any]]
    muon: Callable[[Case], dict[str, Any]]


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
        arguments=pr398_arguments,
        muon=lambda case: {**MUON, "backend_steps": 5, "weight_decay": case.weight_decay},
    ),
    "baseline": Script(
        ref="refs/heads/main:train_gpt.py",
        sha256="c6cae5e767aa0464e8767620f3bbdb08048c99f4b7ae0f0e146dd9b17e68e673",
        arguments=common_arguments,
        muon=lambda _: {**MUON, "backend_steps": 5},
    ),
}


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
        names = [name for name in parameters if name.endswith(MATRICES)]
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


def compare(sides: dict[str, Published], case: Case) -> Computed:
    """Print how far apart the two sides are; return what the script computed in fp32."""
    print(f"{case.config.layers} layers of width {case.config.dim}, {case.batch} x {case.tokens} tokens")
    theirs = {precision: sides[precision].compute(case) for precision in DTYPES}
    for precision, want in theirs.items():
        ours = compute_ours(case, DTYPES[precision])
        print(f"  {precision}  loss {ours.loss:.9f} and {want.loss:.9f}, apart {abs(ours.loss - want.loss):.2g}")
        print(f"    logits    largest difference {(ours.logits - want.logits).abs().max():.2g}")
        print("    gradients worst relative error {:.2g} ({})".format(*worst(ours.gradients, want.gradients)))
    noise = worst(theirs["float32"].gradients, theirs["float64"].gradients)
    print("    the script's own fp32 rounding, for scale: {:.2g} ({})".format(*noise))
    result = theirs["float32"]
    for precision, side in sides.items():
        updates = side.updates(case, result.gradients)
        ours = our_updates(case, side.dtype, getattr(torch, precision), result.gradients)
        print("  {}  two Muon steps, worst relative error {:.2g} ({})".format(precision, *worst(ours, updates)))
        if precision == "float32":
            result.updates = updates
    return result


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
    source = read_script(script, arguments.checkout)
    sides = {precision: Published(script, source, precision) for precision in SUBSTITUTIONS}
    cases: dict[str, Any] = {}
    for name, case in CASES[arguments.script].items():
        print(f"\n{name}: ", end="")
        cases[name] = frozen_values(case, compare(sides, case))
    print("\npublished size: ", end="")
    compare(sides, PUBLISHED_SIZE[arguments.script])
    if arguments.freeze:
        FROZEN.mkdir(exist_ok=True)
        origin = {"script": script.ref, "sha256": script.sha256, "seed": SEED, "torch": torch.__version__}
        text = json.dumps({**origin, "cases": cases}, indent=1) + "\n"
        (FROZEN / f"{arguments.script}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
