"""Quantised weights in the forward pass: what they are, what their gradient is, and that the compiled step has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call

from model.config import BigramConfig, GPTConfig, ValueEmbeddingConfig
from model.gpt import GPT
from model.grid import Grid, choose_scales, dequantize, quantize
from model.init import initialise
from stages.train.checkpoint import Checkpoints
from stages.train.config import Config, QatConfig
from stages.train.data import open_data
from stages.train.loop import Trainer
from stages.train.objective import Objective
from stages.train.qat import MEMBERS, FakeQuantise, OnGrid, hard, soft, soft_round_residual, soft_round_sigmoid
from stages.train.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")
INT6 = {"bits": 6, "scale_floor": 1 / 31, "full_range": True}
PUBLISHED = Grid(bits=6, floor=1 / 31, full_range=True)
CPU = torch.device("cpu")


def matrices(seed: int, *shape: int, size: float = 0.3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def rounded(w: torch.Tensor, grid: Grid) -> torch.Tensor:
    return hard(w, choose_scales(w.detach().abs().amax(-1), grid), grid)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    floor=st.sampled_from([0.0, 1 / 31]),
    full=st.booleans(),
    size=st.floats(1e-3, 10.0),
)
def test_hard_weights_are_to_the_bit_what_the_quantiser_stores(seed, bits, floor, full, size):
    w, grid = matrices(seed, 2, 5, 7, size=size), Grid(bits=bits, floor=floor, full_range=full)
    scales = choose_scales(w.abs().amax(-1), grid)
    assert torch.equal(hard(w, scales, grid), dequantize(quantize(w, scales, grid), scales))


def test_hard_rounding_is_the_published_rule():
    # PR #417: s = max(rowmax / 31, 1 / 31), clamp(round(w / s), -32, 31) * s; ours keeps s in fp16, as it is stored.
    w = matrices(1, 64, 128)
    step = (w.abs().amax(1, keepdim=True) / 31).clamp_min(1 / 31)
    torch.testing.assert_close(rounded(w, PUBLISHED), (w / step).round().clamp(-32, 31) * step, atol=step.max(), rtol=0)
    agree = ((rounded(w, PUBLISHED) / step).round() == (w / step).round().clamp(-32, 31)).double().mean()
    assert agree > 0.99


def test_the_gradient_passes_straight_through():
    w = matrices(2, 3, 4, 8).requires_grad_()
    outer = matrices(3, 3, 4, 8)
    (rounded(w, PUBLISHED) * outer).sum().backward()
    assert torch.equal(w.grad, outer)


def test_soft_rounding_goes_from_the_weight_itself_to_its_code():
    x = torch.linspace(-3.4, 3.4, 137)
    torch.testing.assert_close(soft_round_sigmoid(x, torch.tensor(1e-3)), x, atol=1e-5, rtol=0)
    far = (x - x.floor() - 0.5).abs() > 0.01  # at the middle between two codes it stays in the middle
    torch.testing.assert_close(soft_round_sigmoid(x, torch.tensor(1e3))[far], x.round()[far], atol=1e-4, rtol=0)
    middle = torch.arange(-3.0, 3.0) + 0.5
    torch.testing.assert_close(soft_round_sigmoid(middle, torch.tensor(9.0)), middle)


def test_soft_rounding_follows_its_formulas():
    x = torch.tensor([0.2, 0.9, -1.3])
    floor, a = torch.tensor([0.0, 0.0, -2.0]), 4.0
    want = floor + 0.5 + torch.tanh(a * (x - floor - 0.5)) / (2 * torch.tanh(torch.tensor(a / 2)))
    torch.testing.assert_close(soft_round_sigmoid(x, torch.tensor(a)), want)
    nearest = torch.tensor([0.0, 1.0, -1.0])
    want = nearest + 0.5 * torch.tanh((x - nearest) / 0.25)
    torch.testing.assert_close(soft_round_residual(x, torch.tensor(0.25)), want)


@pytest.mark.parametrize(("form", "hardness"), [("sigmoid", 6.0), ("residual", 0.4)])
def test_soft_gradients_are_those_of_the_formula_with_fixed_scales(form, hardness):
    w, hardness = matrices(4, 3, 8).double().requires_grad_(), torch.tensor(hardness, dtype=torch.float64)
    grid = Grid(bits=4)
    scales = choose_scales(w.detach().abs().amax(-1).float(), grid)
    softened = soft(w, scales, grid, hardness, form)
    (gradient,) = torch.autograd.grad(softened.sum(), w)
    step = scales.double()[:, None]
    x = w.detach() / step
    if form == "sigmoid":
        inner = torch.tanh(hardness * (x - x.floor() - 0.5))
        slope = hardness * (1 - inner**2) / (2 * torch.tanh(hardness / 2))
    else:
        slope = 0.5 * (1 - torch.tanh((x - x.round()) / hardness) ** 2) / hardness
    inside = (softened.detach() / step).abs() < grid.top - 1e-9  # beyond, the clamp has none
    torch.testing.assert_close(gradient[inside], slope[inside])
    assert inside.double().mean() > 0.5


def small(**features: Any) -> GPT:
    model = GPT(GPTConfig(vocab=32, layers=3, dim=16, heads=2, kv_heads=1, mlp_hidden=32, **features))
    initialise(model, 3)
    return model


def test_groups_have_bits_of_their_own_and_the_others_stay():
    config = QatConfig.model_validate({"mode": "ste", "attention": INT6, "mlp": {"bits": 3}})
    model = small()
    fake = FakeQuantise(config)
    found = fake.weights(model, OnGrid(fake.scales(model), torch.ones(())))
    assert set(found) == set(MEMBERS["attention"]) | set(MEMBERS["mlp"])
    assert len(found["mlp.up"][0, 0].unique()) <= 7
    assert torch.equal(found["attn.q"], rounded(model.attn.q, PUBLISHED))


def test_every_member_is_a_parameter_of_some_network():
    model = small(bigram=BigramConfig(buckets=8, dim=4), value_embedding=ValueEmbeddingConfig(layers=(1,), dim=4))
    names = {name for name, _ in model.named_parameters()}
    assert {member for members in MEMBERS.values() for member in members} <= names


# ---- in the step


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 32, (2, 17), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def objective(**qat: Any) -> Objective:
    return Objective(Config.model_validate({"qat": {"attention": INT6, "mlp": {**INT6, "bits": 4}, **qat}}))


def test_the_loss_is_that_of_the_stored_weights_and_the_masters_get_its_gradient():
    model, (inputs, targets) = small(), batch()
    step = objective(mode="ste")
    on_grid = OnGrid(step.fake.scales(model), torch.ones(()))
    loss, _ = step.losses(model, inputs, targets, None, on_grid)
    loss.backward()
    there = {name: w.detach().requires_grad_() for name, w in step.fake.weights(model, on_grid).items()}
    logits = functional_call(model, there, (inputs,))
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    gradients = torch.autograd.grad(want, list(there.values()))
    assert loss.item() == pytest.approx(want.item(), abs=1e-6)
    for (name, _), gradient in zip(there.items(), gradients, strict=True):
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


@pytest.mark.parametrize("mode", ["ste", "soft"])
def test_one_compiled_step_has_two_graphs_and_hardness_is_no_constant_of_either(mode):
    counter = CompileCounterWithBackend("aot_eager")
    step = objective(mode=mode)
    compiled = torch.compile(step.losses, fullgraph=True, dynamic=False, backend=counter)
    hardness = torch.ones(())
    seen: dict[float, list[torch.Tensor]] = {}
    for value in (0.0, 1.0, 3.0, 9.0, 0.0, 27.0):  # 0: as they are
        gradients = {}
        for name, losses in (("compiled", compiled), ("eager", step.losses)):
            model, (inputs, targets) = small(), batch()
            with torch.no_grad():
                model.attn.o.copy_(matrices(5, *model.attn.o.shape))
                model.mlp.down.copy_(matrices(6, *model.mlp.down.shape))
            on_grid = OnGrid(step.fake.scales(model), hardness.fill_(value)) if value else None
            loss, _ = losses(model, inputs, targets, None, on_grid)
            loss.backward()
            gradients[name] = [p.grad for p in model.parameters()]
        for ours, eager in zip(gradients["compiled"], gradients["eager"], strict=True):
            torch.testing.assert_close(ours, eager, atol=1e-6, rtol=1e-5)
        seen[value] = gradients["compiled"]
    assert counter.frame_count == 2
    assert not torch.allclose(seen[0.0][1], seen[1.0][1], rtol=1e-3)
    assert torch.equal(seen[3.0][1], seen[9.0][1]) == (mode == "ste")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", ["ste", "soft"])
def test_a_fusing_compiler_keeps_the_grid_of_the_quantiser(mode):
    # With scales computed inside the graph, Inductor leaves their rounding to fp16 out, and codes move.
    step = objective(mode=mode)
    found = {}
    for name, losses in (
        ("compiled", torch.compile(step.losses, fullgraph=True, dynamic=False)),
        ("eager", step.losses),
    ):
        model, (inputs, targets) = small(), batch()
        with torch.no_grad():
            for seed, parameter in enumerate(p for p in model.parameters() if p.ndim == 3):
                parameter.copy_(matrices(seed, *parameter.shape))
        loss, _ = losses(model, inputs, targets, None, OnGrid(step.fake.scales(model), torch.tensor(3.0)))
        loss.backward()
        found[name] = [loss.detach(), *(p.grad for p in model.parameters())]
    for ours, eager in zip(found["compiled"], found["eager"], strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-4)


@pytest.fixture
def train(tiny, inputs, runtime, tmp_path: Path):
    """Run a whole training in this process: `train("name", **changes)`, every graph compiled for tracing only."""

    def run(name: str, backend: Any = None, **changes: Any) -> Trainer:
        config = Config.model_validate({**tiny, **changes})
        spans, validation = open_data(config, inputs, 0, 1)
        (tmp_path / name).mkdir()
        trainer = Trainer(config, spans, validation, runtime, CPU, Checkpoints(tmp_path / name, name), seed=7)
        if backend:
            trainer.compiled = True
            trainer._losses = torch.compile(trainer._losses, fullgraph=True, dynamic=False, backend=backend)
        trainer.run()
        return trainer

    return run


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


LATE = {"mode": "ste", "attention": INT6, "mlp": {"bits": 4}, "below_scale": 0.4}
NO_SNAPSHOTS = {"snapshots": {"every": {"steps": 0, "of": 1}}}


def test_in_a_compiled_run_weights_move_otherwise_after_the_flip_and_not_before(train):
    plain = train("plain", backend="aot_eager", steps=12, **NO_SNAPSHOTS)
    graphs = CompileCounterWithBackend("aot_eager")
    late = train("late", backend=graphs, steps=12, qat=LATE, **NO_SNAPSHOTS)
    assert graphs.frame_count == 2
    # Scale 8/8 .. 1/8 over steps 5 .. 12: below 0.4 in the last three.
    assert (plain.progress.qat_steps, late.progress.qat_steps) == (0, 3)
    a, b = ([line["train_loss"] for line in t.progress.curve if "train_loss" in line] for t in (plain, late))
    assert a[:9] == b[:9]
    assert all(x != y for x, y in zip(a[9:], b[9:], strict=True))
    assert not torch.equal(weights(plain)["attn.q"], weights(late)["attn.q"])


def test_eager_and_compiled_runs_with_late_quantisation_agree(train):
    soft_late = {**LATE, "mode": "soft", "mlp": {"bits": 6}}
    eager = weights(train("eager", qat=soft_late, **NO_SNAPSHOTS))
    compiled = weights(train("compiled", backend="aot_eager", qat=soft_late, **NO_SNAPSHOTS))
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, atol=1e-4, rtol=1e-3)


def test_what_is_declared_dead_changes_nothing_and_is_on_record(train):
    plain, dead = train("plain"), train("dead", qat={**LATE, "mode": "declared_dead"})
    assert dead.progress.qat_steps == 0
    assert all(torch.equal(tensor, weights(dead)[name]) for name, tensor in weights(plain).items())
    assert dead.config.qat.below_scale == 0.4


def test_validation_never_quantises(train):
    always = train("always", qat={"mode": "ste", "attention": {"bits": 2}, "mlp": {"bits": 2}}, steps=1)
    plain = train("plain", steps=1)
    first = [t.progress.curve[0]["val_loss"] for t in (always, plain)]
    assert first[0] == first[1]
    assert always.progress.qat_steps == 1


# ---- when


def schedule(steps: int, warmup: int = 0, warmdown: int = 40, **qat: Any) -> Schedule:
    spans = {"warmup": {"steps": warmup, "of": 100}, "warmdown": {"steps": warmdown, "of": 100}}
    group = {"mode": "soft", "attention": {"bits": 6}}
    return Schedule(Config.model_validate({"steps": steps, "schedule": spans, "qat": {**group, **qat}}), steps)


def live(plan: Schedule, steps: int) -> list[int]:
    return [step for step in range(steps) if plan.qat_is_due(step, plan.scale(step, 0.0), plan.share(step, 0.0))]


def test_it_begins_below_a_scale_of_the_warmdown_or_after_a_share_of_the_run():
    assert live(schedule(100, below_scale=0.15), 100) == list(range(95, 100))  # 0.15 * 40 = 6 steps: 94 has 0.15
    assert live(schedule(100, after_share=0.96), 100) == list(range(96, 100))
    assert live(schedule(100), 100) == list(range(100))
    assert live(schedule(100, warmup=10, below_scale=0.15), 100) == list(range(95, 100))
    assert live(schedule(100, mode="declared_dead"), 100) == []


def test_hardness_follows_the_published_schedules():
    plan = schedule(100, below_scale=0.1)  # PR #1232: 1 + 15 (1 - scale / threshold)
    assert [plan.qat_hardness(scale, 0.0) for scale in (0.1, 0.05, 0.0)] == pytest.approx([1.0, 8.5, 16.0])
    soft_round = {"form": "residual", "start": 1.0, "end": 0.05}  # PR #1033: geometric in what is left
    plan = schedule(100, after_share=0.8, soft=soft_round)
    assert [plan.qat_hardness(1.0, share) for share in (0.8, 0.9, 1.0)] == pytest.approx([1.0, 0.05**0.5, 0.05])


def test_quantisation_without_a_grid_is_refused():
    with pytest.raises(ValueError, match=r"qat\.mode 'ste' needs a grid; set qat\.attention\.bits"):
        Config.model_validate({"qat": {"mode": "ste"}})
