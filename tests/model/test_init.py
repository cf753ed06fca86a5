from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from model.config import BigramConfig, GPTConfig, InitConfig, RefinerConfig, RopeConfig, ValueEmbeddingConfig
from model.gpt import GPT
from model.init import initialise

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = GPTConfig(
    layers=11,
    dim=64,
    heads=4,
    kv_heads=2,
    mlp_hidden=192,
    rope=RopeConfig(dims=4),
    bigram=BigramConfig(buckets=64, dim=16),
    smear=True,
    unet_skips=True,
    residual_mix=True,
    ln_scale=True,
)


FEATURES = {
    "value_embedding": ValueEmbeddingConfig(layers=(9, 10), dim=16),
    "gated_attention": True,
    "memory_tokens": 40,
    "refiner": RefinerConfig(latent=16, hidden=48),
}


def initialised(config: GPTConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    model = GPT(config)
    initialise(model, seed)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def test_every_parameter_starts_as_the_table_says():
    state = initialised(replace(BASE, tied_head=False))
    ones = ("block.attn_scale", "block.mlp_scale", "skip.weights")
    zeros = ("attn.o", "mlp.down", "bigram.embed", "smear.gate", "head.weight")
    assert all(bool((state[name] == 1).all()) for name in ones)
    assert all(bool((state[name] == 0).all()) for name in zeros)
    assert bool((state["attn.q_gain"] == 1.5).all())
    assert state["bigram.scale"].item() == pytest.approx(0.05)
    assert bool((state["block.residual_mix"][:, 0] == 1).all())
    assert bool((state["block.residual_mix"][:, 1] == 0).all())
    assert state["embed.tokens"].std().item() == pytest.approx(0.005, rel=0.02)


def test_features_start_as_published():
    state = initialised(replace(BASE, **FEATURES, value_residual="mix"))
    assert bool((state["attn.gate"] == 0).all())
    assert bool((state["attn.gate_bias"] == 4).all())
    assert bool((state["attn.value_mix"] == 0.5).all())
    assert bool((initialised(replace(BASE, value_residual="additive"))["vr.scales"] == 0).all())
    assert state["ve.embed"].std().item() == pytest.approx(0.01, rel=0.02)
    assert state["ve.scale"].item() == pytest.approx(0.1)
    assert bool((state["ve.layer_scales"] == 1).all())
    assert state["memory.tokens"].std().item() == pytest.approx(0.02, rel=0.05)
    assert state["refiner.gate"].item() == -5
    assert all(bool((state[f"refiner.{name}"] == 0).all()) for name in ("inner_bias", "outer", "outer_bias"))
    for name in ("refiner.down", "refiner.inner", "refiner.up"):
        short = state[name] if state[name].shape[0] <= state[name].shape[1] else state[name].T
        torch.testing.assert_close(short @ short.T, torch.eye(short.shape[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("gain", "want"), [(0.0, 1 / math.sqrt(22)), (1.0, 1.0)])
def test_both_auxiliary_projections_have_the_gain_of_their_system(gain, want):
    """1 / sqrt(2L) in PRs #398, #417, #1033 and #1232; 1 in #549 and #714."""
    state = initialised(replace(BASE, **FEATURES, init=InitConfig(auxiliary_gain=gain)))
    for name in ("bigram.proj", "ve.proj"):
        torch.testing.assert_close(state[name].T @ state[name], torch.eye(16) * want**2, atol=1e-6, rtol=1e-5)


def test_a_fresh_value_residual_or_refiner_changes_little_or_nothing():
    plain, tokens = GPT(BASE), torch.randint(1024, (2, 32), generator=torch.Generator().manual_seed(0))
    initialise(plain, 0)
    for feature, atol in ({"value_residual": "additive"}, 0.0), ({"refiner": FEATURES["refiner"]}, 0.02):
        model = GPT(replace(BASE, **feature))
        initialise(model, 0)
        torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["attn.q", "attn.k", "attn.v", "mlp.up"])
def test_each_matrix_of_a_bank_is_orthogonal_and_unlike_the_others(name):
    bank = initialised(BASE)[name]
    for matrix in bank:
        short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        torch.testing.assert_close(short @ short.T, torch.eye(short.shape[0]), atol=1e-5, rtol=0)
    assert not torch.allclose(bank[0], bank[1], atol=0.01)


def test_the_bigram_projection_has_the_published_gain():
    proj = initialised(BASE)["bigram.proj"]
    torch.testing.assert_close(proj.T @ proj, torch.eye(16) / 22, atol=1e-6, rtol=0)
    assert 1 / math.sqrt(22) == pytest.approx(0.2132, abs=5e-5)


def test_options_of_the_table():
    init = InitConfig(matrices="torch", embed_std=1.0, auxiliary_zero=True)
    state = initialised(replace(BASE, init=init))
    assert state["embed.tokens"].std().item() == pytest.approx(1.0, rel=0.02)
    assert bool((state["bigram.proj"] == 0).all())
    for name in ("attn.q", "attn.k", "attn.v", "mlp.up"):
        bound = 1 / math.sqrt(64)  # torch's rule for nn.Linear: uniform within 1 / sqrt(inputs)
        assert state[name].abs().max().item() == pytest.approx(bound, rel=0.01)
        assert state[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert initialised(replace(BASE, init=InitConfig(auxiliary_gain=2.0)))["bigram.proj"].norm() == pytest.approx(8.0)


def test_a_seed_gives_the_same_weights_again_and_another_seed_others():
    first, again, other = initialised(BASE, 3), initialised(BASE, 3), initialised(BASE, 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["attn.q"], other["attn.q"])


def test_switching_features_off_leaves_all_other_tensors_as_they_were():
    with_features = initialised(replace(BASE, **FEATURES, value_residual="mix"))
    plain = initialised(replace(BASE, bigram=BigramConfig(), smear=False, unet_skips=False, residual_mix=False))
    assert set(with_features) - set(plain) == {
        "bigram.embed",
        "bigram.proj",
        "bigram.scale",
        "smear.gate",
        "skip.weights",
        "block.residual_mix",
        "attn.gate",
        "attn.gate_bias",
        "attn.value_mix",
        "memory.tokens",
        *(f"ve.{name}" for name in ("embed", "proj", "scale", "layer_scales")),
        *(f"refiner.{name}" for name in ("down", "inner", "inner_bias", "outer", "outer_bias", "up", "gate")),
    }
    assert all(torch.equal(plain[name], with_features[name]) for name in plain)


def test_the_global_random_state_plays_no_part():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initialised(BASE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(initialised(BASE)["embed.tokens"], first["embed.tokens"])


def test_a_fresh_network_predicts_almost_uniformly():
    model = GPT(BASE)
    initialise(model, 0)
    logits = model(torch.randint(1024, (4, 32), generator=torch.Generator().manual_seed(0)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(1024, (128,)))
    assert loss.item() == pytest.approx(math.log(1024), abs=0.02)


def test_tensors_of_equal_shape_start_unlike_each_other():
    state = initialised(BASE)
    assert not torch.allclose(state["attn.k"], state["attn.v"], atol=0.01)
