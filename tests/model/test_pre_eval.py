from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.config import BigramConfig, GPTConfig
from model.descent import Compute
from model.gpt import GPT
from model.init import initialise
from model.pre_eval import PreAdapter, rate_of, steps_of
from model.protocol import Phase

CONFIG = GPTConfig(
    vocab=32, layers=3, dim=16, heads=2, kv_heads=1, mlp_hidden=24, bigram=BigramConfig(buckets=16, dim=8),
    smear=True, unet_skips=True, residual_mix=True,
)  # fmt: skip
CONTEXT = 8
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, CONFIG.vocab, 22 * CONTEXT + 4))  # 22 rows and a rest
PR398 = Phase(epochs=20, lr=0.008, batch_sequences=256, lanes=8, clip_norm=1.0)
PR417 = Phase(epochs=50, lr=0.01, batch_sequences=512, order="permutation", drop_tail=True, schedule="cosine")
ROWS = 62_021_632 // 2048


def network(seed=0):
    model = GPT(CONFIG)
    initialise(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


def run(model, *phases, world=1, rank=0):
    named = dict(zip(("first", "second"), phases, strict=False))
    adapter = PreAdapter(model, named, CONTEXT, len(TOKENS) - 1, Compute(forward=model, rank=rank, world=world))
    told = adapter.run(TOKENS, lambda done, total, loss: None)
    return adapter, told


def test_398_takes_119_steps_an_epoch_from_eight_contiguous_lanes():
    """Rank r owns rows 30284 r / 8 .. 30284 (r + 1) / 8, in order, 32 a step; the last step has 9 or 10 of each."""
    steps = list(steps_of(PR398, ROWS, 0))
    assert len(steps) == 119
    assert len(steps) * PR398.epochs == 2_380
    bounds = [ROWS * rank // 8 for rank in range(9)]
    rows, weights = steps[5]
    assert rows.tolist() == [b + i for b in bounds[:8] for i in range(160, 192)]
    assert weights == pytest.approx(1 / 256)
    rows, weights = steps[-1]
    lengths = [bounds[rank + 1] - bounds[rank] - 118 * 32 for rank in range(8)]
    assert set(lengths) == {9, 10}
    assert len(rows) == sum(lengths)
    assert weights.tolist() == pytest.approx([1 / 8 / n for n in lengths for _ in range(n)])
    assert sorted(np.concatenate([rows for rows, _ in steps]).tolist()) == list(range(ROWS))


def test_417_takes_59_steps_an_epoch_in_a_new_order_and_never_sees_76_rows():
    epochs = [[rows for rows, _ in steps_of(PR417, ROWS, epoch)] for epoch in (0, 1)]
    assert [len(steps) for steps in epochs] == [59, 59]
    seen = [np.concatenate(steps) for steps in epochs]
    for rows in seen:
        assert sorted(rows.tolist()) == list(range(30_208))
    assert (seen[0] != seen[1]).mean() > 0.99
    assert all(weights == pytest.approx(1 / 512) for _, weights in steps_of(PR417, ROWS, 0))
    again = np.concatenate([rows for rows, _ in steps_of(PR417, ROWS, 1)])
    assert (again == seen[1]).all()


def test_a_cosine_over_epochs_does_not_reach_zero():
    assert rate_of(PR417, 0) == 0.01
    assert rate_of(PR417, 49) == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 49 / 50)))
    assert [rate_of(PR398, epoch) for epoch in (0, 19)] == [0.008, 0.008]


def test_lanes_step_as_ranks_that_average_their_gradients_do():
    """By hand, as #398 does: each rank's mean loss over its own next rows, gradients averaged, clipped, SGD."""
    ours, theirs = network(), network()
    adapter, told = run(ours, Phase(epochs=2, lr=0.05, batch_sequences=6, lanes=3, clip_norm=0.5))
    assert adapter.steps == told[0]["steps"] == 2 * 4  # lanes of 7, 7 and 8 rows, two at a time
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    lanes = [range(22 * rank // 3, 22 * (rank + 1) // 3) for rank in range(3)]
    for _ in range(2):
        for begin in range(0, 8, 2):
            optimizer.zero_grad()
            losses = []
            for lane in lanes:
                rows = [TOKENS[r * CONTEXT : (r + 1) * CONTEXT + 1] for r in lane[begin : begin + 2]]
                x, y = torch.stack([row[:-1] for row in rows]), torch.stack([row[1:] for row in rows])
                losses.append(functional.cross_entropy(theirs(x).flatten(0, 1), y.flatten()))
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_the_second_phase_goes_on_from_the_first_with_other_parameters_and_a_fresh_optimizer():
    first = Phase(epochs=3, lr=0.01, batch_sequences=11, optimizer="adamw", adapt=("*.attn_scale", "*.residual_mix"))
    second = Phase(epochs=2, lr=0.05, batch_sequences=11, adapt=("blocks.2.*",), order="permutation", schedule="cosine")
    both, apart = network(), network()
    adapter, told = run(both, first, second)
    run(apart, first)
    between = {name: parameter.detach().clone() for name, parameter in apart.named_parameters()}
    run(apart, second)
    assert all(torch.equal(a, b) for a, b in zip(both.parameters(), apart.parameters(), strict=True))
    assert [each["parameters"] for each in told] == [3 * 16 * 3, sum(b[2].numel() for n, b in both.named_parameters()
        if n.startswith(("attn.", "mlp.", "block.")))]  # fmt: skip
    assert adapter.steps == 3 * 2 + 2 * 2
    assert torch.equal(both.mlp.up[:2], between["mlp.up"][:2])
    assert not torch.equal(both.mlp.up[2], between["mlp.up"][2])


def test_targets_of_positions_that_memory_replaced_are_not_trained_on():
    torch.manual_seed(3)
    ours, theirs = (GPT(replace(CONFIG, memory_tokens=2)) for _ in range(2))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.1)
    theirs.load_state_dict(ours.state_dict())
    _, told = run(ours, Phase(epochs=1, lr=0.05, batch_sequences=22, clip_norm=0.0))
    x, y = (TOKENS[i : 22 * CONTEXT + i].view(22, CONTEXT) for i in (0, 1))
    loss = functional.cross_entropy(theirs(x)[:, 2:].flatten(0, 1), y[:, 2:].flatten())
    loss.backward()
    assert told[0]["first_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in theirs.named_parameters():
        expected = (parameter - 0.05 * parameter.grad).detach()
        torch.testing.assert_close(ours.get_parameter(name).detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_training_on_the_stream_lowers_its_loss_and_says_so():
    _, told = run(network(), Phase(epochs=10, lr=0.1, batch_sequences=11))
    assert told[0]["last_loss"] < told[0]["first_loss"] - 0.1


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase(epochs=1, adapt=("blocks.3.*",)), r"pre_eval\.first\.adapt names .*'blocks\.3\.\*' matches none"),
        (Phase(epochs=1, freeze=("*",)), r"pre_eval\.first\.freeze \(\*\) leaves nothing"),
        (Phase(epochs=1, batch_sequences=23, drop_tail=True), "has 22 rows of 8 tokens for batches of 23; lower"),
    ],
)
def test_a_phase_that_cannot_be_is_refused_before_it_runs(phase, text):
    with pytest.raises(ValueError, match=text):
        PreAdapter(network(), {"first": phase}, CONTEXT, len(TOKENS) - 1, Compute(forward=network()))


def test_a_phase_that_diverges_is_named():
    with pytest.raises(ValueError, match=r"in epoch \d they are not; lower pre_eval\.first\.lr"):
        run(network(), Phase(epochs=3, lr=1e30, batch_sequences=4, clip_norm=0.0))
