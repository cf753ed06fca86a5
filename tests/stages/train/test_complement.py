"""Complementary weights and the terms of the loss: what their formulas say, with numbers worked out by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import functional

from model.config import GPTConfig
from model.gpt import GPT
from model.init import initialise
from stages.train.complement import BigramWeights
from stages.train.config import ComplementConfig, Config
from stages.train.objective import Objective

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def table(**config: float) -> BigramWeights:
    return BigramWeights(5, ComplementConfig.model_validate({"alpha": 0.5, **config}), CPU)


def rows(*ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    whole = torch.tensor(ids)
    return whole[:, :-1], whole[:, 1:]


def test_weights_fall_with_the_share_of_a_pair_among_what_follows():
    counted = table()
    counted.count(*rows([1, 2, 1, 2, 1, 3]))  # 1 -> 2 twice, 1 -> 3 once, 2 -> 1 twice
    found = counted.weights(torch.tensor([[1, 1, 2, 4]]), torch.tensor([[2, 3, 3, 0]]))
    want = torch.tensor([[1 - 0.5 * 2 / 4, 1 - 0.5 * 1 / 4, 1.0, 1.0]])
    torch.testing.assert_close(found, want)


def test_the_floor_holds():
    counted = table(alpha=1.0, floor=0.4)
    for _ in range(20):
        counted.count(*rows([1, 2]))
    assert counted.weights(torch.tensor([[1]]), torch.tensor([[2]])).item() == pytest.approx(0.4)


def test_counts_are_those_of_all_pairs_and_survive_a_checkpoint():
    generator = torch.Generator().manual_seed(0)
    counted, seen = table(), Counter()
    for _ in range(3):
        inputs, targets = rows(*torch.randint(0, 5, (4, 30), generator=generator).tolist())
        seen.update(zip(inputs.flatten().tolist(), targets.flatten().tolist(), strict=True))
        counted.count(inputs, targets)
        counted.finish_step()
    assert {(x, y): n for (x, y), n in seen.items()} == {
        (x, y): int(counted.counts_VV[x, y]) for x in range(5) for y in range(5) if counted.counts_VV[x, y]
    }
    resumed = table()
    resumed.load(counted.counts_VV)
    assert torch.equal(resumed.weights(inputs, targets), counted.weights(inputs, targets))


def test_an_unfinished_step_leaves_no_trace():
    counted = table()
    counted.count(*rows([1, 2, 3]))
    counted.finish_step()
    before = counted.counts_VV.clone(), counted.weights(*rows([1, 2, 3]))
    counted.count(*rows([1, 2, 2]))
    counted.count(*rows([3, 2, 1]))
    counted.rewind()
    counted.rewind()
    assert torch.equal(counted.counts_VV, before[0])
    assert torch.equal(counted.weights(*rows([1, 2, 3])), before[1])


def objective(**config: Any) -> Objective:
    return Objective(Config.model_validate(config))


@pytest.fixture
def scored() -> tuple[GPT, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network with logits that matter, a batch, and its logits and nats."""
    model = GPT(GPTConfig(vocab=32, layers=1, dim=16, heads=2, kv_heads=1, mlp_hidden=16))
    initialise(model, 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.embed.tokens.normal_(0, 1, generator=generator)
    inputs, targets = torch.randint(0, 32, (2, 2, 9), generator=generator)
    logits = model(inputs).detach()
    nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 9)
    return model, inputs, targets, logits, nats


def test_without_terms_the_loss_is_the_mean(scored):
    model, inputs, targets, _, nats = scored
    loss, mean = objective().losses(model, inputs, targets)
    assert loss.item() == mean.item() == pytest.approx(nats.mean().item(), rel=1e-6)


def test_weights_multiply_the_nats_and_are_not_divided_out_unless_asked(scored):
    model, inputs, targets, _, nats = scored
    weights = torch.linspace(0.1, 1.0, 18).view(2, 9)
    for renormalise, want in ((False, (weights * nats).mean()), (True, (weights * nats).sum() / weights.sum())):
        step = objective(complement={"alpha": 0.5, "renormalise": renormalise})
        loss, mean = step.losses(model, inputs, targets, weights)
        assert loss.item() == pytest.approx(want.item(), rel=1e-6)
        assert mean.item() == pytest.approx(nats.mean().item(), rel=1e-6)


def test_z_loss_adds_the_mean_squared_log_partition(scored):
    model, inputs, targets, logits, nats = scored
    loss, mean = objective(z_loss=0.01).losses(model, inputs, targets)
    partition = logits.exp().sum(-1).log()
    assert loss.item() == pytest.approx((nats.mean() + 0.01 * partition.square().mean()).item(), rel=1e-6)
    assert mean.item() == pytest.approx(nats.mean().item(), rel=1e-6)


def test_z_loss_has_a_gradient_towards_a_partition_of_one(scored):
    model, inputs, targets, logits, _ = scored
    objective(z_loss=1.0).losses(model, inputs, targets)[0].backward()
    pulled = model.embed.tokens.grad.clone()
    model.zero_grad()
    objective().losses(model, inputs, targets)[0].backward()
    assert not torch.allclose(pulled, model.embed.tokens.grad, rtol=1e-3)
    assert logits.logsumexp(-1).mean() > 1


def test_targets_of_positions_that_memory_replaced_do_not_count_but_in_the_z_loss(scored):
    """As published (PR #398): masked in the cross-entropy, and so in its mean, while log Z is taken everywhere."""
    _, inputs, targets, _, _ = scored
    network = GPTConfig(vocab=32, layers=1, dim=16, heads=2, kv_heads=1, mlp_hidden=16, memory_tokens=4)
    model = GPT(network)
    initialise(model, 1)
    logits = model(inputs).detach()
    nats = functional.cross_entropy(logits[:, 4:].transpose(1, 2), targets[:, 4:], reduction="none")
    weights = torch.linspace(0.1, 1.0, 18).view(2, 9)
    config = Config.model_validate({"z_loss": 0.01, "complement": {"alpha": 0.5}}).model_copy(
        update={"network": network}
    )
    loss, mean = Objective(config).losses(model, inputs, targets, weights)
    z = 0.01 * logits.logsumexp(-1).square().mean()
    assert mean.item() == pytest.approx(nats.mean().item(), rel=1e-6)
    assert loss.item() == pytest.approx(((weights[:, 4:] * nats).mean() + z).item(), rel=1e-6)


def test_a_vocabulary_whose_pairs_do_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"complement counts vocab\^2 pairs.*got 65536"):
        Config.model_validate({"complement": {"alpha": 0.5}, "network": {"vocab": 65536}})
