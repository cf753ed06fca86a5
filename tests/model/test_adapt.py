from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.adapt import Adaptation, Adapter, adapting_slices, virtual_names
from model.config import BigramConfig, GPTConfig
from model.gpt import GPT
from model.init import initialise

CONFIG = GPTConfig(
    vocab=32, layers=4, dim=16, heads=2, kv_heads=1, mlp_hidden=24, bigram=BigramConfig(buckets=16, dim=8),
    smear=True, unet_skips=True, residual_mix=True,
)  # fmt: skip
CONTEXT = 8


def network(seed=0):
    model = GPT(CONFIG)
    initialise(model, seed)
    return model


def chunk(rows=4, seed=0, extra=1):
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab, rows * CONTEXT + extra)
    return torch.from_numpy(ids)


def adapt(model, tokens=None, chunks=2, **settings):
    adapter = Adapter(model, Adaptation(**settings), CONTEXT)
    for i in range(chunks):
        adapter.update(chunk(seed=i) if tokens is None else tokens, i)
    return adapter


def changes(before, after):
    """Largest change of each parameter, per layer for banks."""
    names = {}
    for name, parameter in after.named_parameters():
        delta = (parameter.detach() - before[name]).abs()
        parts = delta.flatten(1).amax(1) if len(virtual_names(name, parameter)) > 1 else delta.max()[None]
        names.update(zip(virtual_names(name, parameter), parts.tolist(), strict=True))
    return names


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_sgd_steps_equal_torch_sgd_on_the_whole_network():
    ours, theirs = network(), network()
    adapt(ours, epochs=3, lr=0.05, batch_sequences=2, clip_norm=0.5)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for i in range(2):
        tokens = chunk(seed=i)
        rows = [(tokens[r : r + CONTEXT], tokens[r + 1 : r + 1 + CONTEXT]) for r in range(0, 4 * CONTEXT, CONTEXT)]
        for _ in range(3):
            for pair in (rows[:2], rows[2:]):
                optimizer.zero_grad()
                x, y = (torch.stack(part) for part in zip(*pair, strict=True))
                functional.cross_entropy(theirs(x).flatten(0, 1), y.flatten()).backward()
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
                optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_what_gets_no_gradient_by_lr_times_decay_per_step(optimizer):
    model = network()
    with torch.no_grad():
        model.embed.tokens.fill_(0.1)
    before = state(model)
    tokens = torch.zeros(4 * CONTEXT + 1, dtype=torch.long)
    adapter = adapt(model, tokens, chunks=1, epochs=2, lr=0.1, weight_decay=0.5, clip_norm=0, optimizer=optimizer)
    assert adapter.steps == 2
    unused = before["bigram.embed"].abs().sum(1) > 0
    used = torch.zeros(16, dtype=torch.bool)
    used[[0, 15]] = True  # the bucket of (0, 0), and the one of a sequence's first position
    rows = unused & ~used
    torch.testing.assert_close(model.bigram.embed.detach()[rows], before["bigram.embed"][rows] * (1 - 0.05) ** 2)


def test_learning_rate_zero_changes_no_bit():
    model = network()
    before = state(model)
    adapt(model, lr=0.0)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_frozen_layers_and_tables_keep_every_bit_and_all_others_move():
    model = network()
    before = state(model)
    frozen = ("blocks.[01].*", "embed.*", "*.attn.k")
    adapt(model, lr=0.05, freeze=frozen, weight_decay=0.1)
    for name, change in changes(before, model).items():
        still = name.startswith(("blocks.0.", "blocks.1.", "embed.")) or name.endswith(".attn.k")
        assert (change == 0) == still, name


def test_a_frozen_part_does_not_count_in_the_gradient_norm():
    """Clipping by the norm of what adapts only: freezing a part must not shrink the steps of the rest."""
    model = network()
    adapter = Adapter(model, Adaptation(freeze=("embed.*",), clip_norm=1e-3, lr=1.0, momentum=0.0, epochs=1), CONTEXT)
    before = state(model)
    adapter.update(chunk(), 0)
    step = math.sqrt(sum(float((p.detach() - before[n]).square().sum()) for n, p in model.named_parameters()))
    assert step == pytest.approx(1e-3, rel=1e-3)


def test_virtual_names_name_each_layer_of_a_bank():
    model = network()
    named = dict(model.named_parameters())
    assert virtual_names("attn.q", named["attn.q"]) == [f"blocks.{i}.attn.q" for i in range(4)]
    assert virtual_names("block.attn_scale", named["block.attn_scale"])[3] == "blocks.3.attn_scale"
    assert virtual_names("skip.weights", named["skip.weights"]) == ["skip.weights"]


def test_a_glob_that_matches_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"'blocks\.4\.attn\.q' matches none; nearest: .*blocks\.\d\.attn\.q"):
        adapting_slices(network().named_parameters(), ["blocks.4.attn.q"])


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match="adaptation trains something"):
        adapting_slices(network().named_parameters(), ["*"])


def test_adapting_counts_the_numbers_that_may_change():
    model = network()
    everything = sum(p.numel() for p in model.parameters())
    assert Adapter(model, Adaptation(), CONTEXT).adapting == everything
    one_layer = sum(
        p[0].numel() for name, p in model.named_parameters() if name.startswith(("attn.", "mlp.", "block."))
    )
    assert Adapter(model, Adaptation(freeze=("blocks.2.*",)), CONTEXT).adapting == everything - one_layer


def test_the_cosine_runs_over_the_declared_horizon_and_stays_at_zero_after_it():
    adapter = Adapter(network(), Adaptation(lr=0.002, horizon_chunks=1893), CONTEXT)
    published = [0.002 * 0.5 * (1 + math.cos(math.pi * c / 1892)) for c in (0, 1, 946, 1892)]
    assert [adapter.lr(c) for c in (0, 1, 946, 1892)] == pytest.approx(published, abs=1e-12)
    assert adapter.lr(5000) == 0
    constant = Adapter(network(), Adaptation(lr=0.002), CONTEXT)
    assert [constant.lr(c) for c in (0, 7, 9999)] == [0.002] * 3


def test_an_epoch_trains_on_every_whole_row_and_leaves_the_rest():
    adapter = adapt(network(), chunk(rows=5, extra=CONTEXT - 1), chunks=1, epochs=3, batch_sequences=2)
    assert adapter.steps == 3 * 3
    assert adapt(network(), torch.zeros(CONTEXT, dtype=torch.long), chunks=1).steps == 0


def test_optimizer_state_carries_over_from_chunk_to_chunk():
    together, apart = network(), network()
    adapt(together, lr=0.01)
    for i in range(2):
        Adapter(apart, Adaptation(lr=0.01), CONTEXT).update(chunk(seed=i), i)
    assert not torch.equal(together.attn.q, apart.attn.q)


def test_training_on_a_chunk_lowers_its_loss():
    model, tokens = network(), chunk()
    x, y = tokens[: 4 * CONTEXT].view(4, CONTEXT), tokens[1 : 4 * CONTEXT + 1]
    before = functional.cross_entropy(model(x).flatten(0, 1), y).item()
    adapt(model, tokens, chunks=1, epochs=10, lr=0.05)
    assert functional.cross_entropy(model(x).flatten(0, 1), y).item() < before - 0.01


def test_an_adaptation_that_diverges_names_the_chunk():
    with pytest.raises(ValueError, match=r"gradients finite; on chunk 1 they are not; lower ttt\.lr"):
        adapt(network(), lr=1e30, clip_norm=0, momentum=0.0, chunks=2, epochs=1)
