"""Groups, rates and decay as published, and a state that travels through a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.gpt import GPT
from model.init import initialise
from stages.train.config import Config
from stages.train.optimizers import Optimizers

CPU = torch.device("cpu")


def build(tiny: dict[str, Any], **changes: Any) -> tuple[GPT, Optimizers]:
    config = Config(**{**tiny, **changes})
    model = GPT(config.network)
    initialise(model, 3)
    return model, Optimizers(model, config, CPU)


def give_gradients(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adam_follows_its_formula_with_decay_times_the_scheduled_rate(tiny):
    model, optimizers = build(tiny, scalar={"lr": 0.02, "weight_decay": 0.5, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6})
    gate = model.block.attn_scale
    expected, first, second = gate.detach().clone(), torch.zeros_like(gate), torch.zeros_like(gate)
    for step, scale in enumerate((1.0, 0.25, 0.5), start=1):
        give_gradients(model, seed=step)
        gradient = gate.grad.clone()
        optimizers.set(scale, momentum=0.9)
        optimizers.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        expected *= 1 - 0.02 * scale * 0.5
        expected -= 0.02 * scale * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-6)
        torch.testing.assert_close(gate.detach(), expected)


def test_every_group_moves_by_its_own_rate(tiny):
    rates = {"embed": 0.01, "scalar": 0.02, "head": 0.04}
    adam = {name: {"lr": lr, "weight_decay": 0.0} for name, lr in rates.items()}
    model, optimizers = build({**tiny, "network": {**tiny["network"], "tied_head": False}}, **adam)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    give_gradients(model, seed=0)
    optimizers.set(0.5, momentum=0.9)
    optimizers.step()
    # The first step of Adam moves every weight by the rate.
    for name, rate in {"embed.tokens": 0.01, "bigram.embed": 0.01, "smear.gate": 0.02, "head.weight": 0.04}.items():
        moved = (model.get_parameter(name).detach() - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate / 2), rtol=1e-3, atol=1e-6)


def test_a_scale_of_zero_moves_nothing(tiny):
    model, optimizers = build(tiny)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    give_gradients(model, seed=0)
    optimizers.set(0.0, momentum=0.9)
    optimizers.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_momentum_reaches_muon(tiny):
    updates = []
    for momentum in (0.0, 0.9):
        model, optimizers = build(tiny)
        for seed in range(2):
            give_gradients(model, seed)
            optimizers.set(1.0, momentum)
            optimizers.step()
        updates.append(model.attn.q.detach().clone())
    assert not torch.allclose(*updates, atol=1e-3)


def test_the_state_goes_on_bit_for_bit_in_another_process(tiny):
    model, optimizers = build(tiny)
    for seed in range(3):
        give_gradients(model, seed)
        optimizers.step()
    state = {name: tensor.clone() for name, tensor in optimizers.state().items()}
    assert {"attn.q/momentum", "embed.tokens/exp_avg", "embed.tokens/step", "smear.gate/exp_avg_sq"} <= set(state)
    other, resumed = build(tiny)
    other.load_state_dict(model.state_dict())
    resumed.load(state)
    for m, o in ((model, optimizers), (other, resumed)):
        give_gradients(m, seed=9)
        o.set(0.7, 0.95)
        o.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name))


def test_after_a_reset_the_next_step_is_a_first_step(tiny):
    model, optimizers = build(tiny)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ends = []
    for _ in range(2):
        model.load_state_dict(start)
        give_gradients(model, seed=1)
        optimizers.set(1.0, 0.95)
        optimizers.step()
        ends.append([p.detach().clone() for p in model.parameters()])
        optimizers.reset()
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_bfloat16_newton_schulz_is_chosen_by_name(tiny):
    ends = {}
    for dtype in ("auto", "float32", "bfloat16"):
        model, optimizers = build(tiny, muon={"dtype": dtype})
        give_gradients(model, seed=1)
        optimizers.step()
        ends[dtype] = model.attn.q.detach().clone()
    assert torch.equal(ends["auto"], ends["float32"])
    assert not torch.equal(ends["auto"], ends["bfloat16"])
    assert ends["bfloat16"] == pytest.approx(ends["float32"], abs=1e-2)
