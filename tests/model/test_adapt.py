from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from model.adapt import Adapter, learning_rate
from model.config import BigramConfig, GPTConfig
from model.gpt import GPT
from model.grid import Grid, choose_scales, dequantize, quantize
from model.init import initialise
from model.names import virtual_names
from model.protocol import Adaptation, FakeQuantise, LowRankSettings

CONFIG = GPTConfig(
    vocab=32, layers=4, dim=16, heads=2, kv_heads=1, mlp_hidden=24, bigram=BigramConfig(buckets=16, dim=8),
    smear=True, unet_skips=True, residual_mix=True,
)  # fmt: skip
CONTEXT = 8


def network(seed=0):
    model = GPT(CONFIG)
    initialise(model, seed)
    return model


def lively(seed=0):
    """A network whose every matrix gets a gradient: those that write to the stream start at zero."""
    model = network(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
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
        parts = delta.flatten(1).amax(1) if len(virtual_names(name, parameter.shape)) > 1 else delta.max()[None]
        names.update(zip(virtual_names(name, parameter.shape), parts.tolist(), strict=True))
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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adamw", "lora": LowRankSettings(rank=2)},
        {"lora": LowRankSettings(rank=2, reset="chunk")},
        {"polyak_decay": 0.9},
        {"fake_quantise": FakeQuantise(bits=4)},
    ],
)
def test_learning_rate_zero_changes_no_bit(settings):
    model = lively()
    before = state(model)
    adapt(model, lr=0.0, **settings)
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


def test_a_glob_that_matches_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"'blocks\.4\.attn\.q' matches none; nearest: .*blocks\.\d\.attn\.q"):
        Adapter(network(), Adaptation(freeze=("blocks.4.attn.q",)), CONTEXT)


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match="adaptation trains something"):
        Adapter(network(), Adaptation(freeze=("*",)), CONTEXT)


def test_adapting_counts_the_numbers_that_may_change():
    model = network()
    everything = sum(p.numel() for p in model.parameters())
    assert Adapter(model, Adaptation(), CONTEXT).adapting == everything
    one_layer = sum(
        p[0].numel() for name, p in model.named_parameters() if name.startswith(("attn.", "mlp.", "block."))
    )
    assert Adapter(model, Adaptation(freeze=("blocks.2.*",)), CONTEXT).adapting == everything - one_layer


def test_the_cosine_runs_over_the_declared_horizon_and_stays_at_zero_after_it():
    settings = Adaptation(lr=0.002, horizon_chunks=1893)
    published = [0.002 * 0.5 * (1 + math.cos(math.pi * c / 1892)) for c in (0, 1, 946, 1892)]
    assert [learning_rate(settings, c) for c in (0, 1, 946, 1892)] == pytest.approx(published, abs=1e-12)
    assert learning_rate(settings, 5000) == 0
    assert [learning_rate(Adaptation(lr=0.002), c) for c in (0, 7, 9999)] == [0.002] * 3


def test_the_warm_up_is_that_of_1232():
    """PR #1232: 1893 // 20 = 94 chunks of linear warm-up, then a cosine over the other 1,799."""
    settings = Adaptation(lr=0.002, horizon_chunks=1893, warmup_share=0.05)
    assert learning_rate(settings, 0) == pytest.approx(0.002 / 94)
    assert learning_rate(settings, 93) == pytest.approx(0.002)
    assert learning_rate(settings, 94) == pytest.approx(0.002)
    middle = 0.002 * 0.5 * (1 + math.cos(math.pi * 906 / 1798))
    assert learning_rate(settings, 1000) == pytest.approx(middle)
    assert learning_rate(settings, 1892) == pytest.approx(0, abs=1e-12)


def test_the_ramp_is_that_of_1033():
    """lr * cosine * (1 + 2 min(c / (0.3 * 1893), 1)), which peaks at 1.19e-3 on chunk 568."""
    settings = Adaptation(lr=5e-4, horizon_chunks=1893, ramp_gain=2.0)
    rates = [learning_rate(settings, c) for c in range(1893)]
    published = [
        5e-4 * 0.5 * (1 + math.cos(math.pi * c / 1892)) * (1 + 2 * min(c / (0.3 * 1893), 1)) for c in range(1893)
    ]
    assert rates == pytest.approx(published, rel=1e-12, abs=1e-18)
    assert (max(rates), rates.index(max(rates))) == (pytest.approx(1.19e-3, rel=2e-3), 568)


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


def test_globs_of_what_learns_leave_the_rest_alone():
    model = lively()
    before = state(model)
    adapt(model, lr=0.05, adapt=("blocks.3.*", "*.mlp_scale"), freeze=("blocks.3.attn.q",))
    for name, change in changes(before, model).items():
        learns = (name.startswith("blocks.3.") or name.endswith(".mlp_scale")) and name != "blocks.3.attn.q"
        assert (change != 0) == learns, name


def test_microbatches_take_the_steps_of_the_whole_batch():
    whole, parts = lively(), lively()
    adapt(whole, lr=0.05, epochs=2)
    adapt(parts, lr=0.05, epochs=2, microbatch_sequences=3)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_shadow_scores_and_training_goes_on_from_the_raw_weights():
    """By hand: shadow <- shadow + (1 - decay) (weights - shadow) after each step, while the weights never see it."""
    raw, polyak = lively(), lively()
    before = state(raw)
    adapter = Adapter(raw, Adaptation(lr=0.05, epochs=1), CONTEXT)
    shadow = {name: value.clone() for name, value in before.items()}
    averaged = Adapter(polyak, Adaptation(lr=0.05, epochs=1, polyak_decay=0.9), CONTEXT)
    for i in range(4):
        adapter.update(chunk(seed=i), i)
        averaged.update(chunk(seed=i), i)
        for name, parameter in raw.named_parameters():
            shadow[name] += 0.1 * (parameter.detach() - shadow[name])
        for name, parameter in polyak.named_parameters():
            torch.testing.assert_close(parameter.detach(), shadow[name], rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(raw.attn.q, polyak.attn.q, atol=1e-4)


def test_a_byte_weighted_loss_weighs_targets_by_their_bytes_over_the_batch_mean():
    ours, theirs, tokens = lively(), lively(), chunk()
    bytes_V = torch.arange(CONFIG.vocab) % 5 * 1.0
    settings = Adaptation(lr=0.05, epochs=1, clip_norm=0, byte_weighted=True, momentum=0.0)
    Adapter(ours, settings, CONTEXT, bytes_V=bytes_V).update(tokens, 0)
    x, y = tokens[: 4 * CONTEXT].view(4, CONTEXT), tokens[1 : 4 * CONTEXT + 1]
    nll = functional.cross_entropy(theirs(x).flatten(0, 1), y, reduction="none")
    weights = bytes_V[y] / bytes_V[y].mean()
    (nll * weights).mean().backward()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter -= 0.05 * parameter.grad
            torch.testing.assert_close(dict(ours.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6, msg=name)


def test_the_gradient_is_taken_on_the_grid_and_applied_to_the_raw_weights():
    ours, theirs, tokens = lively(), lively(), chunk()
    grid = Grid(bits=3, full_range=True)
    settings = {"lr": 0.05, "epochs": 1, "clip_norm": 0.0, "momentum": 0.0}
    rounded = FakeQuantise(bits=3, full_range=True, targets=("*.attn.[qk]",))
    Adapter(ours, Adaptation(**settings, fake_quantise=rounded), CONTEXT).update(tokens, 0)
    raw = state(theirs)
    with torch.no_grad():
        for bank in (theirs.attn.q, theirs.attn.k):
            scales = choose_scales(bank.abs().amax(-1), grid)
            bank.copy_(dequantize(quantize(bank, scales, grid), scales))
    assert not torch.equal(theirs.attn.q, raw["attn.q"])
    x, y = tokens[: 4 * CONTEXT].view(4, CONTEXT), tokens[1 : 4 * CONTEXT + 1]
    functional.cross_entropy(theirs(x).flatten(0, 1), y).backward()
    for name, parameter in theirs.named_parameters():
        expected = raw[name] - 0.05 * parameter.grad
        torch.testing.assert_close(dict(ours.named_parameters())[name].detach(), expected, rtol=1e-4, atol=1e-6)


def test_soft_rounding_in_adaptation_has_the_gradient_of_its_own_formula():
    """PR #1033: round(w / s) + tanh((w / s - round) / T) / 2, clamped to the codes, times s; autograd does the rest."""
    ours, theirs, tokens = lively(), lively(), chunk()
    grid = Grid(bits=3, full_range=True)
    settings = {"lr": 0.05, "epochs": 1, "clip_norm": 0.0, "momentum": 0.0}
    names = ("attn.q", "mlp.up")
    soft = FakeQuantise(bits=3, full_range=True, soft_temperature=0.1, targets=("*.attn.q", "*.mlp.up"))
    Adapter(ours, Adaptation(**settings, microbatch_sequences=3, fake_quantise=soft), CONTEXT).update(tokens, 0)
    raw = {name: value.requires_grad_() for name, value in state(theirs).items()}
    rounded = {}
    for name in names:
        step = choose_scales(raw[name].detach().abs().amax(-1), grid).float()[..., None]
        code = raw[name] / step
        nearest = code.detach().round()
        rounded[name] = (nearest + 0.5 * torch.tanh((code - nearest) / 0.1)).clamp(-4, 3) * step
        assert (rounded[name] - raw[name]).abs().max() > 0.1 * step.max()
    x, y = tokens[: 4 * CONTEXT].view(4, CONTEXT), tokens[1 : 4 * CONTEXT + 1]
    functional.cross_entropy(functional_call(theirs, {**raw, **rounded}, (x,)).flatten(0, 1), y).backward()
    for name, value in ours.named_parameters():
        expected = raw[name].detach() - 0.05 * raw[name].grad
        torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_adaptation_learns_nothing_from_targets_of_positions_that_memory_replaced():
    config = replace(CONFIG, memory_tokens=3)
    torch.manual_seed(5)
    ours, theirs, tokens = GPT(config), GPT(config), chunk()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.1)
    theirs.load_state_dict(ours.state_dict())
    settings = Adaptation(lr=0.05, epochs=1, clip_norm=0.0, momentum=0.0)
    Adapter(ours, settings, CONTEXT).update(tokens, 0)
    x, y = tokens[: 4 * CONTEXT].view(4, CONTEXT), tokens[1 : 4 * CONTEXT + 1].view(4, CONTEXT)
    functional.cross_entropy(theirs(x)[:, 3:].flatten(0, 1), y[:, 3:].flatten()).backward()
    for name, parameter in theirs.named_parameters():
        expected = (parameter - 0.05 * parameter.grad).detach()
        torch.testing.assert_close(ours.get_parameter(name).detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


LORA = {"lora": LowRankSettings(rank=2), "optimizer": "adamw", "lr": 0.01}


def factors(model, bank, rank=2):
    """What the adapters start from, drawn as they draw it: a function of the name alone."""
    learner = next(
        each for each in Adapter(model, Adaptation(**LORA), CONTEXT)._stepper.learners if each._part.name == bank
    )
    return [tensor.clone() for tensor in learner.tensors]


def test_adapters_learn_as_autograd_says_with_w_plus_ab_inside_the_forward():
    ours, theirs, tokens = lively(), lively(), chunk()
    start = {name: factors(lively(), name) for name in ("attn.q", "attn.v")}
    adapters = {name: [tensor.requires_grad_() for tensor in pair] for name, pair in start.items()}
    optimizer = torch.optim.Adam([tensor for pair in adapters.values() for tensor in pair], lr=0.01)
    Adapter(ours, Adaptation(**LORA, epochs=5, clip_norm=0), CONTEXT).update(tokens, 0)
    x, y = tokens[: 4 * CONTEXT].view(4, CONTEXT), tokens[1 : 4 * CONTEXT + 1]
    for _ in range(5):
        optimizer.zero_grad()
        merged = {name: getattr(theirs.attn, name[-1]).detach() + a @ b for name, (a, b) in adapters.items()}
        logits = torch.func.functional_call(theirs, merged, (x,))
        functional.cross_entropy(logits.flatten(0, 1), y).backward()
        optimizer.step()
    for name, (a, b) in adapters.items():
        expected = (getattr(theirs.attn, name[-1]) + a @ b).detach()
        torch.testing.assert_close(getattr(ours.attn, name[-1]).detach(), expected, rtol=1e-4, atol=1e-5)
    for name, parameter in ours.named_parameters():
        if name not in adapters:
            assert torch.equal(parameter, dict(theirs.named_parameters())[name]), name


def test_adapters_are_the_only_parameters_and_start_as_nothing():
    model = lively()
    before = state(model)
    adapter = Adapter(model, Adaptation(lora=LowRankSettings(rank=2)), CONTEXT)
    # Q is 16 x 16 and V 8 x 16, four layers of each, two columns and two rows.
    assert adapter.adapting == 4 * 2 * (16 + 16) + 4 * 2 * (8 + 16)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    adapter.update(chunk(), 0)
    moved = {name for name, change in changes(before, model).items() if change}
    assert moved == {f"blocks.{layer}.attn.{bank}" for layer in range(4) for bank in "qv"}


def test_adapters_of_chosen_layers_leave_the_others():
    model = lively()
    before = state(model)
    adapt(model, lora=LowRankSettings(rank=1, targets=("blocks.2.mlp.up",)), lr=0.1)
    assert {name for name, change in changes(before, model).items() if change} == {"blocks.2.mlp.up"}


def test_adapters_that_forget_each_chunk_know_the_last_one_only():
    forgetful, fresh = lively(), lively()
    settings = Adaptation(optimizer="adamw", lr=0.01, lora=LowRankSettings(rank=2, reset="chunk"))
    adapter = Adapter(forgetful, settings, CONTEXT)
    for i in range(3):
        adapter.update(chunk(seed=i), i)
    Adapter(fresh, Adaptation(**LORA), CONTEXT).update(chunk(seed=2), 0)
    assert all(torch.equal(a, b) for a, b in zip(forgetful.parameters(), fresh.parameters(), strict=True))


def test_adapters_that_forget_at_a_document_learn_from_its_tokens_only():
    """BOS is 0. The chunk's last document has 10 tokens, its BOS included: a row of 8 targets and one of 1."""
    settings = Adaptation(optimizer="adamw", lr=0.01, lora=LowRankSettings(rank=2, reset="document"))
    tokens = chunk(seed=1).clamp_min(1)
    tokens[[5, len(tokens) - 10]] = 0
    long, short = lively(), lively()
    adapter = Adapter(long, settings, CONTEXT, bos=0)
    adapter.update(chunk(seed=0).clamp_min(1), 0)
    adapter.update(tokens, 1)
    Adapter(short, settings, CONTEXT, bos=0).update(tokens[-10:], 0)
    assert all(torch.equal(a, b) for a, b in zip(long.parameters(), short.parameters(), strict=True))
    other = lively()
    Adapter(other, settings, CONTEXT, bos=0).update(tokens[-9:], 0)
    assert not torch.equal(other.attn.q, long.attn.q)


def test_a_row_that_is_not_full_is_trained_on_its_own_targets_only():
    settings = Adaptation(optimizer="adamw", lr=0.01, lora=LowRankSettings(rank=2, reset="document"))
    ours, theirs = lively(), lively()
    tokens = chunk(seed=1).clamp_min(1)[:6]
    tokens[0] = 0
    Adapter(ours, settings, CONTEXT, bos=0).update(tokens, 0)
    Adapter(theirs, Adaptation(**LORA), 5).update(tokens, 0)
    torch.testing.assert_close(ours.attn.q, theirs.attn.q, rtol=1e-4, atol=1e-5)


def test_chunk_after_chunk_of_one_document_is_not_forgotten():
    settings = Adaptation(optimizer="adamw", lr=0.01, lora=LowRankSettings(rank=2, reset="document"))
    together, never = lively(), lively()
    adapter, other = Adapter(together, settings, CONTEXT, bos=0), Adapter(never, Adaptation(**LORA), CONTEXT)
    for i in range(3):
        adapter.update(chunk(seed=i).clamp_min(1), i)
        other.update(chunk(seed=i).clamp_min(1), i)
    assert torch.equal(together.attn.q, never.attn.q)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lora": LowRankSettings(rank=1, targets=("*.q_gain",))}, r"adapters are for matrices; .*attn\.q_gain"),
        ({"lora": LowRankSettings(rank=9)}, r"attn\.v is 8 x 16, ttt\.lora\.rank is 9; lower it"),
        ({"lora": LowRankSettings(rank=1, targets=("*.attn.w",))}, r"ttt\.lora\.targets names .*'\*\.attn\.w'"),
        ({"lora": LowRankSettings(rank=1, reset="document")}, r"this tokenizer has none; use ttt\.lora\.reset"),
        ({"fake_quantise": FakeQuantise(bits=4, targets=("*.mlp_scale",))}, r"a scale per row; .*block\.mlp_scale"),
        ({"adapt": ("block.*",)}, r"ttt\.adapt names parameters that exist; 'block\.\*' matches none; nearest: block"),
        ({"byte_weighted": True}, "needs the bytes of each token"),
    ],
)
def test_settings_that_fit_no_network_are_refused_at_once(settings, text):
    with pytest.raises(ValueError, match=text):
        Adapter(lively(), Adaptation(**settings), CONTEXT)
