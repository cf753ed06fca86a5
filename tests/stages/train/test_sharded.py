"""Muon dealt out over ranks is Muon: same weights, norms and checkpoint, whatever the number of layers."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.weights import load_weights, save_weights
from stages.train.config import Config
from stages.train.optimizers import Optimizers, clip

pytestmark = pytest.mark.usefixtures("one_thread")
WORKER = Path(__file__).with_name("sharded_worker.py")
STEPS = 4
SHAPES = {
    "attn.q": (11, 8, 8),
    "attn.o": (11, 8, 8),  # one stack with attn.q
    "attn.k": (11, 4, 8),
    "mlp.up": (11, 24, 8),
    "bigram.proj": (8, 6),  # a stack of one
    "smear.gate": (8,),
    "embed.tokens": (16, 8),
}


def random(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * size for name, shape in SHAPES.items()}


def run_ranks(folder: Path, world: int, config: dict[str, Any]) -> None:
    (folder / "case.json").write_text(json.dumps({"config": config, "steps": STEPS}))
    save_weights(folder / "start.safetensors", random(0))
    for rank in range(world):
        for step in range(STEPS):
            save_weights(folder / f"gradients-{rank}-{step}.safetensors", random(1 + rank + 10 * step, 0.01))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    subprocess.run([*command, str(WORKER), str(folder)], check=True, timeout=120, capture_output=True)


@pytest.mark.parametrize(("world", "clip_norm", "dtype"), [(2, 0.1, "float32"), (4, 0.0, "bfloat16")])
def test_ranks_that_share_eleven_layers_equal_one_process(world: int, clip_norm: float, dtype: str, tmp_path: Path):
    config = {"muon": {"parallel": "sharded", "momentum_dtype": dtype}, "clip_norm": clip_norm}
    run_ranks(tmp_path, world, config)
    bank = SimpleNamespace(**runpy.run_path(str(WORKER))).Bank
    alone = bank(load_weights(tmp_path / "start.safetensors")[0])
    optimizers = Optimizers(alone, Config.model_validate(config), torch.device("cpu"))
    norms = []
    for step in range(STEPS):
        each = [load_weights(tmp_path / f"gradients-{rank}-{step}.safetensors")[0] for rank in range(world)]
        for name, parameter in alone.named_parameters():
            parameter.grad = sum(gradients[name] for gradients in each) / world
        norms.append(optimizers.gradient_norms())
        clip(optimizers.gradients(), norms[-1], clip_norm)
        optimizers.set(1.0, 0.9)
        optimizers.step()
    end, state = (load_weights(tmp_path / f"{name}.safetensors")[0] for name in ("end", "state"))
    # Sums of bf16 gradients round twice, and Newton-Schulz brings what is noise to full size.
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    torch.testing.assert_close(end["norms"], torch.stack(norms), rtol=tolerance, atol=0)
    start = load_weights(tmp_path / "start.safetensors")[0]
    for name, parameter in alone.named_parameters():
        moved, wanted = end[name] - start[name], parameter.detach() - start[name]
        assert (moved - wanted).norm() <= 10 * tolerance * wanted.norm(), name
    own = optimizers.state()
    assert set(state) == set(own)
    for name, tensor in own.items():
        assert state[name].dtype == tensor.dtype
        assert (state[name].float() - tensor.float()).norm() <= 2 * tolerance * tensor.float().norm(), name


def test_one_process_takes_the_plain_path_whatever_is_asked():
    bank = SimpleNamespace(**runpy.run_path(str(WORKER))).Bank
    ends = []
    for parallel in ("sharded", "replicated"):
        model = bank(random(0))
        optimizers = Optimizers(model, Config.model_validate({"muon": {"parallel": parallel}}), torch.device("cpu"))
        for name, parameter in model.named_parameters():
            parameter.grad = random(1)[name]
        optimizers.step()
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_bfloat16_momentum_rounds_gradients_as_they_come_in():
    bank = SimpleNamespace(**runpy.run_path(str(WORKER))).Bank
    model = bank(random(0))
    muon = {"momentum_dtype": "bfloat16", "dtype": "float32"}
    optimizers = Optimizers(model, Config.model_validate({"muon": muon}), torch.device("cpu"))
    buffer = torch.zeros(SHAPES["attn.q"], dtype=torch.bfloat16)
    for seed in (1, 2):
        for name, parameter in model.named_parameters():
            parameter.grad = random(seed)[name]
        buffer.mul_(0.9).add_(random(seed)["attn.q"].bfloat16())
        optimizers.set(1.0, 0.9)
        optimizers.step()
    assert torch.equal(optimizers.state()["attn.q/momentum"], buffer)
