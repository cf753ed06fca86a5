"""Does our training loop do what the challenge's baseline script does, step after step?

    python benchmarks/parity_loop.py train_gpt.py [--freeze]

`parity.py` compares single steps; this compares what a run adds to them: the order of the data over shard borders and
the wrap, gradient accumulation, the momentum ramp, the warmdown and clipping. The script's own network, Muon and loader
run in fp32 on a CPU (its bf16 casts are replaced before it is compiled) from our initial weights, driven by its rules
as the specification states them. `--freeze` writes its losses to tests/stages/train/parity_baseline.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.batches import Spans, TrainStream
from model.shards import write_shard
from stages.contract import Runtime
from stages.train.checkpoint import Checkpoints
from stages.train.config import Config
from stages.train.loop import Trainer

FROZEN = Path(__file__).resolve().parents[1] / "tests" / "stages" / "train" / "parity_baseline.json"
SEED = 5
SEQUENCE, MICROBATCH, ACCUMULATION = 32, 128, 2
STEPS, RAMP, WARMDOWN = 24, 10, 9
RATES = {"embed": 0.05, "matrix": 0.04, "scalar": 0.04}
NETWORK = {"vocab": 64, "layers": 4, "dim": 32, "heads": 4, "kv_heads": 2, "mlp_hidden": 64}


def our_config(clip_norm: float, warmdown: int) -> Config:
    adam = {name: {"lr": RATES[name], "weight_decay": 0.0} for name in ("embed", "scalar")}
    ramp = {"steps": RAMP, "of": STEPS}
    muon = {"lr": RATES["matrix"], "weight_decay": 0.0, "momentum": 0.95, "momentum_start": 0.85, "momentum_ramp": ramp}
    return Config.model_validate(
        {
            "network": {**NETWORK, "unet_skips": True, "residual_mix": True, "init": {"matrices": "torch"}},
            "steps": STEPS,
            "sequence_tokens": SEQUENCE,
            "microbatch_tokens": MICROBATCH,
            "batch_tokens": MICROBATCH * ACCUMULATION,
            "validation_tokens": 0,
            "clip_norm": clip_norm,
            "muon": muon,
            "schedule": {"warmdown": {"steps": warmdown, "of": STEPS}},
            **adam,
        }
    )


def write_data(folder: Path) -> list[Path]:
    """Two shards that the run reads across and wraps around: a noisy cycle, so that there is something to learn."""
    draw = np.random.default_rng(1)
    ids = (np.arange(4000) * 5 + (draw.random(4000) < 0.3) * draw.integers(0, 64, 4000)) % 64
    for name, part in (("00000.bin", ids[:1500]), ("00001.bin", ids[1500:])):
        write_shard(folder / name, part.astype(np.uint16))
    return sorted(folder.glob("*.bin"))


def our_trainer(folder: Path, clip_norm: float, warmdown: int = WARMDOWN) -> Trainer:
    config = our_config(clip_norm, warmdown)
    spans = Spans(
        stream=TrainStream(write_data(folder), NETWORK["vocab"]),
        sequence_tokens=SEQUENCE,
        microbatch_tokens=MICROBATCH,
        batch_tokens=MICROBATCH * ACCUMULATION,
    )
    runtime = Runtime(scratch=folder, checkpoints=folder / "checkpoints")
    runtime.checkpoints.mkdir()
    checkpoints = Checkpoints(runtime.checkpoints, "parity")
    return Trainer(config, spans, None, runtime, torch.device("cpu"), checkpoints, SEED)


def their_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our banks as the script's tensors."""
    theirs = {"tok_emb.weight": ours["embed.tokens"], "skip_weights": ours["skip.weights"]}
    per_layer = {
        "attn.c_q.weight": "attn.q",
        "attn.c_k.weight": "attn.k",
        "attn.c_v.weight": "attn.v",
        "attn.proj.weight": "attn.o",
        "attn.q_gain": "attn.q_gain",
        "mlp.fc.weight": "mlp.up",
        "mlp.proj.weight": "mlp.down",
        "attn_scale": "block.attn_scale",
        "mlp_scale": "block.mlp_scale",
        "resid_mix": "block.residual_mix",
    }
    for layer in range(NETWORK["layers"]):
        theirs |= {f"blocks.{layer}.{name}": ours[bank][layer] for name, bank in per_layer.items()}
    return theirs


def their_losses(script: types.ModuleType, weights: dict[str, Tensor], shards: Path, clip_norm: float) -> list[float]:
    """The mean loss of each step's micro-batches, before its update."""
    n = NETWORK
    model = script.GPT(
        n["vocab"], n["layers"], n["dim"], n["heads"], n["kv_heads"], 2, True, 0.005, 30.0, 10_000.0, 1.5
    ).float()
    model.load_state_dict(their_names(weights), strict=False)
    groups: dict[str, list[nn.Parameter]] = {"embed": [], "matrix": [], "scalar": []}
    for name, parameter in model.named_parameters():
        control = any(word in name for word in script.CONTROL_TENSOR_NAME_PATTERNS)
        kind = "matrix" if parameter.ndim == 2 and not control else "scalar"
        groups["embed" if name == "tok_emb.weight" else kind].append(parameter)
    muon = script.Muon(groups["matrix"], lr=0.0, momentum=0.0, backend_steps=5)
    adam = {k: torch.optim.Adam(groups[k], betas=(0.9, 0.95), eps=1e-8) for k in ("embed", "scalar")}
    optimizers = {**adam, "matrix": muon}
    loader = script.DistributedTokenLoader(str(shards / "*.bin"), 0, 1, torch.device("cpu"))
    losses = []
    for step in range(STEPS):
        scale = min(1.0, (STEPS - step) / WARMDOWN)
        done = min(step / RAMP, 1.0)
        muon.param_groups[0]["momentum"] = (1 - done) * 0.85 + done * 0.95
        total = 0.0
        for _ in range(ACCUMULATION):
            loss = model(*loader.next_batch(MICROBATCH * ACCUMULATION, SEQUENCE, ACCUMULATION)) / ACCUMULATION
            loss.backward()
            total += loss.item()
        if clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for kind, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = RATES[kind] * scale
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total)
    return losses


def main() -> None:
    torch.set_num_threads(1)  # the matrices are too small to share
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--freeze", action="store_true")
    arguments = parser.parse_args()
    source = arguments.script.read_text(encoding="utf-8")
    script = types.ModuleType("published_baseline")
    sys.modules[script.__name__] = script
    in_fp32 = source.replace("torch.bfloat16", "torch.float32").replace(".bfloat16()", ".float()")
    exec(compile(in_fp32, script.__name__, "exec"), script.__dict__)
    frozen = {"script_sha256": hashlib.sha256(source.encode()).hexdigest(), "losses": {}}
    for clip_norm in (0.0, 0.3):
        with tempfile.TemporaryDirectory() as folder:
            trainer = our_trainer(Path(folder), clip_norm)
            weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            theirs = their_losses(script, weights, Path(folder), clip_norm)
            trainer.run()
        ours = [line["train_loss"] for line in trainer.progress.curve]
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        print(f"clip {clip_norm}: {STEPS} losses, {theirs[0]:.4f} to {theirs[-1]:.4f}, worst difference {worst:.2g}")
        frozen["losses"][str(clip_norm)] = [round(loss, 6) for loss in theirs]
    if arguments.freeze:
        FROZEN.write_text(json.dumps(frozen, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
