"""Do our networks and optimizers compute what the published scripts compute?

    python benchmarks/parity.py pr714 CHECKOUT [--freeze]     CHECKOUT: a git directory of the challenge's repository
    python benchmarks/parity.py all CHECKOUT [--freeze]       (pull-request refs included), or one train_gpt.py

The published script is executed as a module, never copied, with the environment of its run. It gets our weights through
a name map and the same batches; our side is the recipe of the same name. Logits, loss, the gradient of every tensor,
and what three steps of all optimizers change in every tensor are compared:
  float64   both sides in fp64 around fp32 rotary tables: any difference in the formulas shows far above 1e-10;
  float32   both sides in fp32: what is left must be rounding, which the script's own fp32 - fp64 distance measures;
  bfloat16  the steps once more, by the same unclipped gradients, with Newton-Schulz in bf16 as published.
The script hard-codes bf16 casts, so its text is changed before it is compiled: `SUBSTITUTIONS` and `Script` say all of
it. FlashAttention is stubbed by torch's attention in the dtype that it is given. Both sides run on a CPU, at reduced
width and once at the published size. `--freeze` writes what the script computed in fp32 at reduced width to
tests/model/parity/, and `make test` holds our code to that.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from parity_cases import (
    CASES,
    MOMENTUM,
    SEED,
    STEPS,
    Case,
    Computed,
    compute_ours,
    frozen_values,
    our_changes,
    our_network,
    published,
    published_size,
    shared_tokens,
    used,
)
from torch import Tensor, nn
from torch.nn import functional

FROZEN = Path(__file__).resolve().parents[1] / "tests" / "model" / "parity"
DTYPES = {"float64": torch.float64, "float32": torch.float32}
SUBSTITUTIONS = {
    "float64": (("torch.bfloat16", "torch.float64"), (".bfloat16()", ".double()"), (".float()", ".double()")),
    "float32": (("torch.bfloat16", "torch.float32"), (".bfloat16()", ".float()")),
    "bfloat16": (),
}
RECORDS = "records/track_10min_16mb"


@dataclass(frozen=True)
class Script:
    """A published training script, the environment of its run, and what its optimizers' set-up does."""

    ref: str
    sha256: str
    environment: str = ""
    auxiliary: Literal["muon", "adamw"] = "muon"  # where main() puts the projections of bigrams and value embeddings
    substitutions: tuple[tuple[str, str], ...] = ()


RECURRENT = (
    "NUM_LAYERS=11 BIGRAM_VOCAB_SIZE=2048 XSA_LAST_N=4 DEPTH_RECURRENCE=4,5 ROPE_DIMS=16 LN_SCALE=1 VE_ENABLED=1 "
    "VE_DIM=128 VE_LAYERS=9,10 MUON_WD=0.04 ADAM_WD=0.04 MATRIX_LR=0.025 SCALAR_LR=0.025 TIED_EMBED_LR=0.035"
)
SCRIPTS = {
    "baseline": Script(
        ref="refs/heads/main:train_gpt.py",
        sha256="c6cae5e767aa0464e8767620f3bbdb08048c99f4b7ae0f0e146dd9b17e68e673",
    ),
    "pr398": Script(
        ref=f"refs/pull/398/head:{RECORDS}/2026-03-21_11L_EMA_TTT20ep_1.1213/train_gpt.py",
        sha256="106e2c71197e169491d3830ab79a2941f0b3063575c2f35c050423c6e5ad4540",
        environment="NUM_LAYERS=11 BIGRAM_VOCAB_SIZE=2048 XSA_LAST_N=0 ROPE_DIMS=16 LN_SCALE=1 MUON_WD=0.04 "
        "ADAM_WD=0.04 MATRIX_LR=0.025 SCALAR_LR=0.025 TIED_EMBED_LR=0.035",
    ),
    "pr417": Script(
        ref=f"refs/pull/417/head:{RECORDS}/2026-03-22_TwoPhase_TTT_NormRepair/train_gpt.py",
        sha256="68c6879e8f7834b918820191cda2ad737ca8200bb7e29ebc541c8970cb7ec38d",
    ),
    "pr417-int5": Script(  # a later version than the one that ran, set back; see the recipe
        ref=f"refs/pull/417/head:{RECORDS}/2026-03-21_QAT_BigramHash12K_Stride32/train_gpt.py",
        sha256="e898ecd495ad623dc9778c7daddcc5cd738e23c7a52b54c4f345c8f483366d69",
        environment="NUM_LAYERS=10 BIGRAM_VOCAB_SIZE=12288 XSA_LAST_N=0 ROPE_DIMS=0 LN_SCALE=0",
    ),
    "pr714": Script(
        ref=f"refs/pull/714/head:{RECORDS}/2026-03-25_11L_RotaryFix_LegalTTT_BIGRAM3072/train_gpt.py",
        sha256="3ed5a11645e31dbe26045bba995aa011725557a2cf2e3d15ed2569bec22e4ae4",
        environment="TRAIN_SEQ_LEN=2048 NUM_LAYERS=11 BIGRAM_VOCAB_SIZE=3072 XSA_LAST_N=4 ROPE_DIMS=16 VE_ENABLED=1 "
        "VE_DIM=128 VE_LAYERS=9,10 MUON_WD=0.04 MATRIX_LR=0.025",
        auxiliary="adamw",
        substitutions=((" and q.is_cuda", ""),),  # its path without FlashAttention mixes up heads and positions
    ),
    "pr1033": Script(
        ref=f"refs/pull/1033/head:{RECORDS}/2026-03-28_ComplementaryBackoff_NgramMixer/train_gpt.py",
        sha256="496f561944ed7c1a392ab4250561585145489738839a0f78370b9aaa8e83c230",
        environment="VRL_ENABLED=1 LEAKY_RELU=1",
    ),
    "pr1033-recurrent": Script(
        ref=f"refs/pull/1033/head:{RECORDS}/2026-03-25_DepthRecurrence_LoRATTT_ParallelMuon/train_gpt.py",
        sha256="4ce35f930e66fd68f9fb5c8452ecc445a91bb2bc424a6b806ccc2dbd369b8263",
        environment=RECURRENT,
        auxiliary="adamw",
    ),
    "pr1232": Script(
        ref="refs/pull/1232/head:records/track_non_record_16mb/"
        "2026-04-01_11L_PR940_20kSteps_ScalingStudy_LegalTTT/train_gpt.py",
        sha256="7d8ded10ac4f2bf0dc41ff085d95a4a32160a1bd9112d295f51876bf9556b343",
    ),
}
SCRIPTS["pr1232-flow"] = Script(SCRIPTS["pr1232"].ref, SCRIPTS["pr1232"].sha256, environment="FLOW_ENABLED=1")


class Published:
    """A published script, loaded in one precision."""

    def __init__(self, script: Script, source: str, precision: str) -> None:
        self.script, self.dtype = script, DTYPES.get(precision, torch.float32)
        for old, new in (*SUBSTITUTIONS[precision], *script.substitutions):
            if old not in source:
                raise SystemExit(f"the script no longer holds {old!r}, which this tool replaces; check SUBSTITUTIONS")
            source = source.replace(old, new)
        flash = types.ModuleType("flash_attn_interface")
        flash.__dict__["flash_attn_func"] = stub_flash_attention
        sys.modules["flash_attn_interface"] = flash
        self.module = types.ModuleType(f"published_{precision}")
        with mock.patch.dict(os.environ, dict(pair.split("=") for pair in script.environment.split())):
            exec(compile(source, self.module.__name__, "exec"), self.module.__dict__)
        self.settings = self.module.Hyperparameters()
        self.seen_logits = torch.zeros(())
        # The script's `F`: the norm's eps as it is in fp32, and a look at the logits that it keeps to itself.
        self.module.__dict__["F"] = types.SimpleNamespace(
            **vars(functional) | {"rms_norm": fp32_eps_norm, "cross_entropy": self._cross_entropy}
        )

    def _cross_entropy(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        self.seen_logits = logits.detach()
        return functional.cross_entropy(logits, targets, reduction=reduction)

    def arguments(self, case: Case) -> dict[str, Any]:
        """What their network is constructed with: the run's own settings, but for the case's widths."""
        wanted, narrowed = inspect.signature(self.module.GPT).parameters, widths(case)
        return {name: narrowed.get(name, self.setting(name)) for name in wanted}

    def setting(self, name: str) -> Any:
        return getattr(self.settings, {"dtg": "dtg_enabled"}.get(name, name))

    def refuse_other_widths(self, case: Case) -> None:
        """At full size our recipe and their run must name the same widths."""
        for name, ours in widths(case).items():
            if name in inspect.signature(self.module.GPT).parameters and ours != self.setting(name):
                raise SystemExit(f"{name} is {self.setting(name)} in the published run; the recipe has {ours}")

    def network(self, case: Case) -> nn.Module:
        """Their network with our weights; buffers (rotary frequencies) stay fp32."""
        model = self.module.GPT(**self.arguments(case))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        weights = published(dict(our_network(case, self.dtype).named_parameters()))
        if hasattr(model, "qo_bank"):
            weights = into_banks(weights)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if missing := shapes.keys() ^ weights.keys():
            raise SystemExit(f"the name map must cover every tensor, on both sides; it lacks {sorted(missing)}")
        model.load_state_dict({name: weight.reshape(shapes[name]) for name, weight in weights.items()}, strict=False)
        return model

    def compute(self, case: Case) -> Computed:
        model, ids = self.network(case), shared_tokens(case)
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        logits = self.seen_logits.view(case.batch, case.tokens, -1).double()
        computed = Computed(loss.item(), logits, per_layer(gradients))
        if case.steps:
            computed.changes = self.changes(case)
        return computed

    def changes(self, case: Case, gradients: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What their optimizers add to each tensor in all steps, by the case's own batches or by these gradients."""
        model = self.network(case)
        optimizers = self.optimizers(model)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for step in range(case.steps):
            if gradients is None:
                ids = shared_tokens(case, step)
                model(ids[:, :-1], ids[:, 1:]).backward()
            else:
                self._set_gradients(model, gradients)
            if self.settings.grad_clip_norm and gradients is None:
                nn.utils.clip_grad_norm_(model.parameters(), self.settings.grad_clip_norm)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
        return per_layer({name: p.detach() - before[name] for name, p in model.named_parameters()})

    def _set_gradients(self, model: nn.Module, gradients: dict[str, Tensor]) -> None:
        if hasattr(model, "qo_bank"):
            gradients = into_banks(gradients)
        for name, parameter in model.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter.dtype).reshape(parameter.shape)

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """As their main() sets them up, which cannot run here; with a constant momentum."""
        s, groups = self.settings, self.groups(model)
        decay = getattr(s, "adam_wd", getattr(s, "weight_decay", 0.0))
        common = {"betas": (s.beta1, s.beta2), "eps": s.adam_eps}
        table_lr = s.tied_embed_lr if getattr(model, "lm_head", None) is None else s.embed_lr
        adam = [
            torch.optim.AdamW(groups["table"], lr=table_lr, weight_decay=decay, **common),
            torch.optim.AdamW(groups["scalar"], lr=s.scalar_lr, weight_decay=decay, **common),
        ]
        if groups["head"]:
            adam.append(torch.optim.AdamW(groups["head"], lr=s.head_lr, weight_decay=0.0, **common))
        settings = {
            "lr": s.matrix_lr,
            "momentum": MOMENTUM,
            "backend_steps": s.muon_backend_steps,
            "weight_decay": getattr(s, "muon_wd", getattr(s, "weight_decay", 0.0)),
        }
        known = inspect.signature(self.module.Muon).parameters
        muon = self.module.Muon(groups["matrix"], **{k: v for k, v in settings.items() if k in known})
        return [*adam, muon]

    def groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Which optimizer their main() gives each parameter to."""
        groups: dict[str, list[nn.Parameter]] = {"table": [], "matrix": [], "scalar": [], "head": []}
        for name, parameter in model.named_parameters():
            groups[self._group(name, parameter)].append(parameter)
        return groups

    def _group(self, name: str, parameter: Tensor) -> str:
        if name == "lm_head.weight":
            return "head"
        if name.endswith(("tok_emb.weight", "embed.weight")):
            return "table"
        if name in ("bigram.proj.weight", "ve_shared.proj.weight"):
            return "matrix" if self.script.auxiliary == "muon" else "scalar"
        control = any(pattern in name for pattern in self.module.CONTROL_TENSOR_NAME_PATTERNS)
        in_block = name.startswith("blocks.") and parameter.ndim == 2 and not control
        return "matrix" if in_block or name.endswith("_bank") else "scalar"


def widths(case: Case) -> dict[str, Any]:
    network = case.network
    return {
        "vocab_size": network.vocab,
        "model_dim": network.dim,
        "num_heads": network.heads,
        "num_kv_heads": network.kv_heads,
        "tie_embeddings": network.tied_head,
        "bigram_vocab_size": network.bigram.buckets,
        "bigram_dim": network.bigram.dim,
        "ve_dim": network.value_embedding.dim,
        "flow_latent_dim": network.refiner.latent or 64,
        "flow_hidden_dim": network.refiner.hidden,
    }


BANKED = {  # their bank: the published names of its first and of its second half
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}


def into_banks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of all layers in the banks of #549."""
    weights = dict(weights)
    layers = sum(name.endswith("attn.c_q.weight") for name in weights)
    for bank, parts in BANKED.items():
        names = [f"blocks.{layer}.{part}.weight" for part in parts for layer in range(layers)]
        weights[bank] = torch.stack([weights.pop(name) for name in names])
    return weights


def per_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor per layer and name: the inverse of `into_banks`; lists of one-element vectors as scalars."""
    tensors = dict(tensors)
    for bank, parts in BANKED.items():
        if bank in tensors:
            for part, half in zip(parts, tensors.pop(bank).chunk(len(parts)), strict=True):
                tensors |= {f"blocks.{layer}.{part}.weight": matrix for layer, matrix in enumerate(half)}
    scalars = ("ve_layer_scales.", "vrl_scales.")
    return used({name: t.reshape(()) if name.startswith(scalars) else t for name, t in tensors.items()})


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
        raise SystemExit(f"both sides must name the same tensors; they differ in {sorted(got.keys() ^ want.keys())}")
    return max((relative(got[name], want[name]), name) for name in want)


def compare(sides: dict[str, Published], case: Case) -> Computed:
    """Print how far apart the two sides are; return what the script computed in fp32."""
    print(f"{case.network.layers} layers of width {case.network.dim}, {case.batch} x {case.tokens} tokens")
    theirs = {precision: sides[precision].compute(case) for precision in DTYPES}
    for precision, want in theirs.items():
        ours = compute_ours(case, DTYPES[precision])
        print(f"  {precision}  loss {ours.loss:.9f} and {want.loss:.9f}, apart {abs(ours.loss - want.loss):.2g}")
        print(f"    logits    largest difference {(ours.logits - want.logits).abs().max():.2g}")
        print("    gradients worst relative error {:.2g} ({})".format(*worst(ours.gradients, want.gradients)))
        if case.steps:
            print("    changes   worst relative error {:.2g} ({})".format(*worst(ours.changes, want.changes)))
    exact, rounded = theirs["float64"], theirs["float32"]
    print("    the script's own fp32 rounding, for scale:")
    print("    gradients {:.2g} ({})".format(*worst(rounded.gradients, exact.gradients)))
    if case.steps:
        print("    changes   {:.2g} ({})".format(*worst(rounded.changes, exact.changes)))
        compare_in_bfloat16(sides, case, rounded.gradients)
    return rounded


def compare_in_bfloat16(sides: dict[str, Published], case: Case, gradients: dict[str, Tensor]) -> None:
    """The steps with the script's own Newton-Schulz, in bf16, on fp32 weights.

    By the same gradients and without clipping, since rounding to bf16 turns their last bits into per cents.
    """
    name = "zeropower_via_newtonschulz5"
    original = sides["bfloat16"].module.__dict__[name]
    with mock.patch.dict(sides["float32"].module.__dict__, {name: original}):
        theirs = sides["float32"].changes(case, gradients)
    ours = our_changes(case, torch.float32, "bfloat16", gradients)
    print("  bfloat16  Newton-Schulz, the same gradients")
    print("    changes   worst relative error {:.2g} ({})".format(*worst(ours, theirs)))


def read_script(script: Script, checkout: Path) -> str:
    """The script's text, from a file or from a git directory; refuses another version."""
    if checkout.is_file():
        raw = checkout.read_bytes()
    else:
        raw = subprocess.run(["git", "-C", checkout, "show", script.ref], check=True, capture_output=True).stdout
    if (sha256 := hashlib.sha256(raw).hexdigest()) != script.sha256:
        raise SystemExit(f"parity is with the script of sha256 {script.sha256}; {checkout} holds {sha256}")
    return raw.decode()


def run(name: str, checkout: Path, freeze: bool) -> None:
    """Compare one script in all its cases and at its published size."""
    script = SCRIPTS[name]
    source = read_script(script, checkout)
    sides = {precision: Published(script, source, precision) for precision in SUBSTITUTIONS}
    cases: dict[str, Any] = {}
    for label, case in CASES[name].items():
        print(f"\n{name}, {label}: ", end="")
        cases[label] = frozen_values(case, compare(sides, case))
    full = published_size(name)
    sides["float32"].refuse_other_widths(full)
    print(f"\n{name}, published size: ", end="", flush=True)
    compare(sides, full)
    if freeze:
        FROZEN.mkdir(exist_ok=True)
        origin = {"script": script.ref, "sha256": script.sha256, "environment": script.environment}
        origin |= {"seed": SEED, "steps": STEPS, "torch": torch.__version__}
        (FROZEN / f"{name}.json").write_text(as_text({**origin, "cases": cases}), encoding="utf-8")


def as_text(frozen: dict[str, Any]) -> str:
    """JSON with a line per result, so that a change of one tensor is a change of one line."""
    text = json.dumps(frozen, indent=1)
    decoder = json.JSONDecoder()
    lines, place = [], 0
    while (start := text.find("[", place)) >= 0:
        values, end = decoder.raw_decode(text, start)
        lines += [text[place:start], json.dumps(values)]
        place = end
    return "".join([*lines, text[place:], "\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("script", choices=[*SCRIPTS, "all"])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--freeze", action="store_true", help="write the script's fp32 values for `make test`")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    for name in SCRIPTS if arguments.script == "all" else [arguments.script]:
        run(name, arguments.checkout, arguments.freeze)


if __name__ == "__main__":
    main()
