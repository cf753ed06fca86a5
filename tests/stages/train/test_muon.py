from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.train.muon import QUINTIC, Muon, newton_schulz, shape_scale

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(16, 16), (48, 16), (16, 48)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_follow_the_quintic_and_singular_vectors_stay(shape):
    g = random(*shape).double()
    left, values, right = torch.linalg.svd(g, full_matrices=False)
    values = values / (values.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    got = newton_schulz(g[None], 5, torch.float64)[0]
    torch.testing.assert_close(got, left @ values.diag() @ right, atol=1e-10, rtol=1e-10)


def well_conditioned(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Singular values between 0.1 and 1: five steps bring all of them near one, in bf16 too."""
    rank, generator = min(rows, columns), torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=generator))[0] for n in (rows, columns))
    return left @ (0.1 + 0.9 * torch.rand(rank, generator=generator)).diag() @ right.T


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(2, 40), st.floats(1e-6, 1e6), st.integers(0, 10**6))
def test_updates_are_nearly_orthogonal_whatever_the_scale(rows, columns, scale, seed):
    g = scale * well_conditioned(rows, columns, seed)
    values = torch.linalg.svdvals(newton_schulz(g[None], 5, torch.float32)[0])
    assert values.min() > 0.3
    assert values.max() < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_bank_is_its_matrices_one_by_one(shape, dtype):
    bank = random(5, *shape)
    one_by_one = torch.cat([newton_schulz(matrix[None], 5, dtype) for matrix in bank])
    got = newton_schulz(bank, 5, dtype)
    assert got.dtype == dtype
    assert got.shape == bank.shape
    torch.testing.assert_close(got.float(), one_by_one.float(), atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)


def test_a_transposed_matrix_gives_the_transposed_update():
    g = random(3, 24, 10)
    torch.testing.assert_close(newton_schulz(g.mT, 5, torch.float32), newton_schulz(g, 5, torch.float32).mT)


def test_a_zero_gradient_gives_a_zero_update():
    assert newton_schulz(torch.zeros(2, 4, 6), 5, torch.float32).abs().max() == 0


def test_bf16_stays_within_a_few_percent_of_fp32():
    g = random(4, 64, 128)
    exact = newton_schulz(g, 5, torch.float32)
    assert (newton_schulz(g, 5, torch.bfloat16) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_agree_with_the_muon_of_torch(shape, nesterov):
    ours, theirs = nn.Parameter(random(*shape)), nn.Parameter(random(*shape))
    mine = Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    torchs = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    for step in range(4):
        ours.grad, theirs.grad = (well_conditioned(*shape, seed=step) for _ in range(2))
        before = theirs.detach().clone()
        mine.step()
        torchs.step()
        # torch damps its buffer (the direction is the same) and orders its bf16 sums otherwise: 3 to 6 % apart;
        # a wrong momentum would be 30 %.
        assert (ours - theirs).detach().norm() < 0.1 * (theirs.detach() - before).norm()
        with torch.no_grad():
            ours.copy_(theirs)


def test_a_bank_moves_as_its_matrices_would_alone():
    weights, gradients = random(3, 12, 20), [random(3, 12, 20, seed=step) for step in (1, 2)]
    bank = nn.Parameter(weights.clone())
    single = [nn.Parameter(matrix.clone()) for matrix in weights]
    settings_ = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "dtype": torch.float32}
    for optimizer, parameters in ((Muon([bank], **settings_), [bank]), (Muon(single, **settings_), single)):
        for gradient in gradients:
            for index, parameter in enumerate(parameters):
                parameter.grad = gradient if parameter.ndim == 3 else gradient[index]
            optimizer.step()
    torch.testing.assert_close(bank.detach(), torch.stack([p.detach() for p in single]))


def test_decay_is_decoupled_and_follows_the_learning_rate():
    parameter = nn.Parameter(random(4, 6))
    before, parameter.grad = parameter.detach().clone(), torch.zeros(4, 6)
    Muon([parameter], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(parameter.detach(), before * 0.95)


def test_momentum_may_change_between_steps():
    parameter = nn.Parameter(torch.zeros(4, 6))
    optimizer = Muon([parameter], lr=1.0, momentum=0.9, nesterov=False, dtype=torch.float32)
    gradients = [random(4, 6, seed=step) for step in (1, 2)]
    parameter.grad = gradients[0]
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5
    before, parameter.grad = parameter.detach().clone(), gradients[1]
    optimizer.step()
    want = newton_schulz((0.5 * gradients[0] + gradients[1])[None], 5, torch.float32)[0]
    torch.testing.assert_close(before - parameter.detach(), want, atol=1e-5, rtol=0)


def test_wide_updates_grow_with_the_root_of_the_widening():
    assert [shape_scale(*shape) for shape in ((1536, 512), (512, 1536), (512, 512))] == [3**0.5, 1.0, 1.0]


def test_state_survives_a_save_and_goes_on_bit_for_bit():
    def run(interrupted: bool) -> torch.Tensor:
        parameter = nn.Parameter(random(2, 6, 4))
        optimizer = Muon([parameter], lr=0.1, momentum=0.9)
        for step in range(4):
            if interrupted and step == 2:
                state = optimizer.state_dict()
                optimizer = Muon([parameter], lr=9.0)
                optimizer.load_state_dict(state)
            parameter.grad = random(2, 6, 4, seed=step)
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(True), run(False))


def test_a_parameter_without_gradient_stays():
    parameter = nn.Parameter(random(4, 4))
    before = parameter.detach().clone()
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(parameter, before)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"Muon takes matrices.*got shape \(3,\); use AdamW"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
