"""The network against a second one, written from the published formulas layer by layer, without banks or folding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from model.config import (
    BigramConfig,
    GPTConfig,
    InitConfig,
    RecurrenceConfig,
    RefinerConfig,
    RopeConfig,
    ValueEmbeddingConfig,
)
from model.gpt import GPT
from model.init import initialise

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = GPTConfig(vocab=40, layers=3, dim=32, heads=4, kv_heads=2, mlp_hidden=24, init=InitConfig(embed_std=0.5))
FEATURES = {
    "partial rope": {"rope": RopeConfig(dims=4)},
    "one rotary pair": {"rope": RopeConfig(dims=2, reference_tokens=5)},
    "NTK rope": {"rope": RopeConfig(reference_tokens=5)},
    "bigram": {"bigram": BigramConfig(buckets=31, dim=6)},
    "smear": {"smear": True},
    "unet_skips": {"unet_skips": True},
    "residual_mix": {"residual_mix": True},
    "ln_scale": {"ln_scale": True},
    "leaky_relu2": {"activation": "leaky_relu2", "leaky_slope": 0.3},
    "untied head": {"tied_head": False},
    "no softcap": {"softcap": 0.0},
    "small softcap": {"softcap": 2.0},
    "full heads": {"kv_heads": 4},
    "five layers": {"layers": 5, "unet_skips": True},
    "one layer": {"layers": 1, "unet_skips": True, "residual_mix": True},
    "XSA on every layer": {"xsa_layers": (0, 1, 2)},
    "XSA on the first layer": {"xsa_layers": (0,)},
    "XSA of full heads": {"xsa_layers": (1, 2), "kv_heads": 4},
    "value embedding": {"value_embedding": ValueEmbeddingConfig(layers=(2, 0), dim=6)},
    "XSA of embedded values": {"value_embedding": ValueEmbeddingConfig(layers=(1,), dim=6), "xsa_layers": (0, 1)},
    "additive value residual": {"value_residual": "additive"},
    "XSA of added values": {"value_residual": "additive", "xsa_layers": (0, 2), "ln_scale": True},
    "mixed value residual": {"value_residual": "mix"},
    "XSA of mixed values": {"value_residual": "mix", "xsa_layers": (0, 2), "ln_scale": True},
    "gated attention": {"gated_attention": True},
    "gate of a scaled input after XSA": {"gated_attention": True, "ln_scale": True, "xsa_layers": (1,)},
    "recurrence across the middle": {"recurrence": RecurrenceConfig(layers=(0, 1)), "unet_skips": True},
    "recurrence of the last layer": {"recurrence": RecurrenceConfig(layers=(2,), passes=3), "residual_mix": True},
    "memory tokens": {"memory_tokens": 3, "smear": True},
    "refiner": {"refiner": RefinerConfig(latent=5, hidden=7)},
}
PUBLISHED = {  # beyond the base stack
    "pr398": {},
    "pr417": {"xsa_layers": (7, 8, 9, 10), "value_embedding": ValueEmbeddingConfig(layers=(9, 10))},
    "pr1033": {
        "activation": "leaky_relu2",
        "xsa_layers": (7, 8, 9, 10),
        "value_embedding": ValueEmbeddingConfig(layers=(9, 10)),
        "value_residual": "additive",
    },
    "pr1033-recurrent": {
        "activation": "leaky_relu2",
        "xsa_layers": (7, 8, 9, 10),
        "value_embedding": ValueEmbeddingConfig(layers=(9, 10)),
        "recurrence": RecurrenceConfig(layers=(4, 5)),
    },
    "pr1232-flow": {
        "activation": "leaky_relu2",
        "xsa_layers": tuple(range(11)),
        "value_residual": "mix",
        "gated_attention": True,
        "refiner": RefinerConfig(latent=64, hidden=256),
    },
}
BASE_STACK = GPTConfig(
    rope=RopeConfig(dims=16, reference_tokens=1024),
    bigram=BigramConfig(buckets=2048),
    smear=True,
    unet_skips=True,
    residual_mix=True,
    ln_scale=True,
)
SMALL_STACK = replace(
    BASE_STACK,
    **{name: getattr(TINY, name) for name in ("vocab", "dim", "heads", "kv_heads", "mlp_hidden", "init")},
    rope=RopeConfig(dims=4, reference_tokens=5),
    bigram=BigramConfig(buckets=31, dim=6),
)
EVERYTHING = replace(
    SMALL_STACK,
    xsa_layers=(2, 7, 8, 9, 10),
    value_embedding=ValueEmbeddingConfig(layers=(4, 9, 10), dim=6),
    value_residual="mix",
    gated_attention=True,
    recurrence=RecurrenceConfig(layers=(4, 5)),
    memory_tokens=2,
    refiner=RefinerConfig(latent=5, hidden=7),
)


def network(config: GPTConfig, seed: int = 0) -> GPT:
    """A network whose every parameter is random, so that no path is dead."""
    model = GPT(config)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def batch(config: GPTConfig, tokens: int = 12) -> Tensor:
    return torch.randint(config.vocab, (2, tokens), generator=torch.Generator().manual_seed(1))


def norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 2**-23).sqrt()


def naive_values(
    x: Tensor, state: dict[str, Tensor], layer: int, c: GPTConfig, tokens: Tensor, first: Tensor
) -> Tensor:
    """The values of all key heads side by side, [B, T, kv_dim]; `first` are those of layer 0."""
    v = x @ state["attn.v"][layer].T
    if layer and c.value_residual == "additive":
        v = v + state["vr.scales"][layer - 1] * first
    if layer and c.value_residual == "mix":
        v = state["attn.value_mix"][layer, 0] * first + state["attn.value_mix"][layer, 1] * v
    if layer in c.value_embedding.layers:
        place = c.value_embedding.layers.index(layer)
        shared = state["ve.scale"] * (state["ve.embed"][tokens] @ state["ve.proj"].T)
        v = v + state["ve.layer_scales"][place] * shared
    return v


def naive_attention(x: Tensor, values: Tensor, state: dict[str, Tensor], layer: int, c: GPTConfig) -> Tensor:
    tokens, width = x.shape[1], c.head_dim
    dims = c.rope.dims or width
    base = c.rope.base
    if c.rope.reference_tokens and tokens > c.rope.reference_tokens and dims > 2:
        base *= (tokens / c.rope.reference_tokens) ** (dims / (dims - 2))
    frequencies = 1 / base ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    angle = (torch.arange(tokens, dtype=torch.float32)[:, None] * frequencies).double()

    def head(name: str, index: int) -> Tensor:
        rows = state[f"attn.{name}"][layer, index * width : (index + 1) * width]
        return torch.einsum("btd,kd->btk", x, rows)

    def turn(h: Tensor) -> Tensor:
        a, b = h[..., : dims // 2], h[..., dims // 2 : dims]
        cos, sin = angle.float().cos().double(), angle.float().sin().double()
        return torch.cat((a * cos + b * sin, -a * sin + b * cos, h[..., dims:]), -1)

    outputs = []
    for h in range(c.heads):
        group = h // (c.heads // c.kv_heads)
        v = values[..., group * width : (group + 1) * width]
        q = turn(norm(head("q", h))) * state["attn.q_gain"][layer, h]
        logits = torch.einsum("bik,bjk->bij", q, turn(norm(head("k", group)))) / math.sqrt(width)
        logits = logits.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
        y = logits.softmax(-1) @ v
        if layer in c.xsa_layers:
            y = y - (y * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v
        if c.gated_attention:
            gate = x @ state["attn.gate"][layer, h] + state["attn.gate_bias"][layer, h]
            y = y / (1 + torch.exp(-gate))[..., None]
        outputs.append(y)
    return torch.cat(outputs, -1) @ state["attn.o"][layer].T


def naive_stem(tokens: Tensor, state: dict[str, Tensor], c: GPTConfig) -> Tensor:
    h = state["embed.tokens"][tokens]
    if c.bigram.buckets:
        buckets = torch.full_like(tokens, c.bigram.buckets - 1)
        for row in range(tokens.shape[0]):
            for t in range(1, tokens.shape[1]):
                hashed = (36313 * int(tokens[row, t])) ^ (27191 * int(tokens[row, t - 1]))
                buckets[row, t] = hashed % (c.bigram.buckets - 1)
        h = h + state["bigram.scale"] * (state["bigram.embed"][buckets] @ state["bigram.proj"].T)
    h = norm(h)
    if c.memory_tokens:
        h = torch.stack([torch.cat((state["memory.tokens"], row[c.memory_tokens :]))[: len(row)] for row in h])
    if c.smear:
        gate = 1 / (1 + torch.exp(-state["smear.gate"]))
        h = (1 - gate) * h + gate * torch.cat((torch.zeros_like(h[:, :1]), h[:, :-1]), 1)
    return h


def naive_logits(model: GPT, tokens: Tensor) -> Tensor:
    c, state = model.config, {name: p.detach().double() for name, p in model.named_parameters()}
    h = x0 = naive_stem(tokens, state, c)
    half, saved, first = c.layers // 2, {}, None
    for layer in range(c.layers):
        mirror = 2 * half - 1 - layer  # the encoder block whose output joins here
        if c.unet_skips and layer >= half and mirror >= 0:
            h = h + state["skip.weights"][layer - half] * saved[mirror]
        scale = 1 / math.sqrt(layer + 1) if c.ln_scale else 1.0
        for _ in range(c.recurrence.passes if layer in c.recurrence.layers else 1):
            if c.residual_mix:
                h = state["block.residual_mix"][layer, 0] * h + state["block.residual_mix"][layer, 1] * x0
            z = norm(h) * scale
            first = z @ state["attn.v"][0].T if first is None else first
            values = naive_values(z, state, layer, c, tokens, first)
            h = h + state["block.attn_scale"][layer] * naive_attention(z, values, state, layer, c)
            z = (norm(h) * scale) @ state["mlp.up"][layer].T
            z = torch.where(z > 0, z, (c.leaky_slope if c.activation == "leaky_relu2" else 0.0) * z) ** 2
            h = h + state["block.mlp_scale"][layer] * (z @ state["mlp.down"][layer].T)
        saved[layer] = h
    h = norm(h)
    if c.refiner.latent:
        z = h @ state["refiner.down"].T
        a = z @ state["refiner.inner"].T + state["refiner.inner_bias"]
        a = a * (1 + torch.erf(a / math.sqrt(2))) / 2
        z = z + a @ state["refiner.outer"].T + state["refiner.outer_bias"]
        h = h + (z @ state["refiner.up"].T) / (1 + torch.exp(-state["refiner.gate"]))
    z = h @ state["embed.tokens" if c.tied_head else "head.weight"].T
    return c.softcap * torch.tanh(z / c.softcap) if c.softcap else z


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_computes_its_formula(feature):
    model = network(replace(TINY, **FEATURES[feature])).double()
    tokens = batch(model.config)
    torch.testing.assert_close(model(tokens), naive_logits(model, tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("system", [*PUBLISHED, "everything"])
def test_features_together_compute_their_formulas(system):
    parts = PUBLISHED.get(system, {})
    if "value_embedding" in parts:
        parts = parts | {"value_embedding": replace(parts["value_embedding"], dim=6)}
    model = network(EVERYTHING if system == "everything" else replace(SMALL_STACK, **parts)).double()
    tokens = batch(model.config)
    torch.testing.assert_close(model(tokens), naive_logits(model, tokens), rtol=1e-9, atol=1e-9)


OTHER_SHAPES = ("full heads", "five layers", "one layer", "XSA of full heads")


@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in OTHER_SHAPES])
def test_each_feature_changes_the_logits(feature):
    config = replace(TINY, **FEATURES[feature])
    plain, model = network(TINY), network(config)
    model.load_state_dict(plain.state_dict(), strict=False)
    tokens = batch(config)
    assert not torch.allclose(model(tokens), plain(tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("feature", "neutral"),
    [
        ("bigram", {"bigram.scale": 0.0}),
        ("smear", {"smear.gate": -1e9}),
        ("unet_skips", {"skip.weights": 0.0}),
        ("residual_mix", {"block.residual_mix": torch.tensor([[1.0], [0.0]])}),
        ("NTK rope", {}),
        ("additive value residual", {"vr.scales": 0.0}),
        ("mixed value residual", {"attn.value_mix": torch.tensor([0.0, 1.0])}),
        ("gated attention", {"attn.gate": 0.0, "attn.gate_bias": 1e9}),
        ("refiner", {"refiner.gate": -1e9}),
        ("value embedding", {"ve.scale": 0.0}),
    ],
)
def test_a_feature_at_its_neutral_value_is_inert(feature, neutral):
    plain = network(TINY)
    model = network(replace(TINY, **FEATURES[feature]))
    model.load_state_dict(plain.state_dict(), strict=False)
    for name, value in neutral.items():
        with torch.no_grad():
            model.get_parameter(name).copy_(torch.as_tensor(value))
    tokens = batch(TINY, tokens=5)  # the NTK rule starts above 5
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rope": st.sampled_from([RopeConfig(dims=2), RopeConfig(reference_tokens=5)]),
            "bigram": st.just(BigramConfig(buckets=31, dim=6)),
            "activation": st.just("leaky_relu2"),
            "kv_heads": st.sampled_from([1, 4]),
            **{name: st.just(True) for name in ("smear", "unet_skips", "residual_mix", "ln_scale")},
            "tied_head": st.just(False),
            "xsa_layers": st.sampled_from([(0,), (1, 2), (0, 1, 2)]),
            "value_embedding": st.sampled_from([ValueEmbeddingConfig(layers=(0, 2), dim=6)]),
            "value_residual": st.sampled_from(["additive", "mix"]),
            "gated_attention": st.just(True),
            "recurrence": st.sampled_from([RecurrenceConfig(layers=(1,)), RecurrenceConfig(layers=(1, 2), passes=3)]),
            "memory_tokens": st.sampled_from([1, 5]),
            "refiner": st.just(RefinerConfig(latent=5, hidden=7)),
        },
    ),
    st.integers(0, 25),
    st.integers(0, 10**6),
)
def test_no_logit_depends_on_a_later_token(features, last_kept, seed):
    model = network(replace(TINY, **features), seed % 7)
    tokens = torch.randint(TINY.vocab, (2, 32), generator=torch.Generator().manual_seed(seed))
    changed = tokens.clone()
    changed[:, last_kept + 1 :] = (changed[:, last_kept + 1 :] + 1 + seed % (TINY.vocab - 1)) % TINY.vocab
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, : last_kept + 1], after[:, : last_kept + 1])
    assert not torch.equal(before[:, last_kept + 1 :], after[:, last_kept + 1 :])


@pytest.mark.parametrize("last", [1, 5, 12])
def test_logits_of_the_last_positions_alone_are_those_of_all(last):
    model, tokens = network(EVERYTHING), batch(EVERYTHING)
    torch.testing.assert_close(model(tokens, last=last), model(tokens)[:, -last:])


def test_the_base_stack_has_its_published_number_of_parameters():
    with torch.device("meta"):
        base = GPT(BASE_STACK)
        naive = GPT(GPTConfig(layers=9, mlp_hidden=1024, unet_skips=True, residual_mix=True))
    assert sum(p.numel() for p in base.parameters()) == 26_829_913
    assert sum(p.numel() for p in naive.parameters()) == 17_059_912
    assert sum(p.shape[0] for p in base.parameters() if p.ndim == 3 and min(p.shape[1:]) > 2) == 66


def test_parameters_have_the_names_and_shapes_that_other_stages_rely_on():
    with torch.device("meta"):
        state = GPT(replace(BASE_STACK, tied_head=False)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "embed.tokens": (1024, 512),
        "head.weight": (1024, 512),
        "bigram.embed": (2048, 128),
        "bigram.proj": (512, 128),
        "bigram.scale": (),
        "smear.gate": (512,),
        "attn.q": (11, 512, 512),
        "attn.k": (11, 256, 512),
        "attn.v": (11, 256, 512),
        "attn.o": (11, 512, 512),
        "attn.q_gain": (11, 8),
        "mlp.up": (11, 1536, 512),
        "mlp.down": (11, 512, 1536),
        "block.attn_scale": (11, 512),
        "block.mlp_scale": (11, 512),
        "block.residual_mix": (11, 2, 512),
        "skip.weights": (5, 512),
    }
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_one_graph_captures_forward_and_backward_and_computes_the_same():
    model, tokens = network(EVERYTHING), batch(EVERYTHING)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    want = model(tokens)
    got = compiled(tokens)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().mean(), list(model.parameters())) for y in (got, want)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_autocast_computes_in_bf16_and_returns_fp32_logits_and_gradients():
    model, tokens = network(EVERYTHING), batch(EVERYTHING)
    seen = []
    model.attend = lambda q, k, v, attend=model.attend: seen.append((q.dtype, k.dtype, v.dtype)) or attend(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens)
    assert set(seen) == {(torch.bfloat16,) * 3}
    assert logits.dtype == torch.float32
    error = (logits - model(tokens)).norm() / model(tokens).norm()
    assert 1e-5 < error < 0.1
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_autocast_also_compiles_to_one_graph():
    model, tokens = network(EVERYTHING), batch(EVERYTHING)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(tokens), model(tokens), rtol=0.1, atol=0.1)


def test_every_parameter_receives_gradient():
    model = network(EVERYTHING)
    functional.cross_entropy(model(batch(EVERYTHING)).flatten(0, 1), batch(EVERYTHING).flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_forward_pass_leaves_no_state_behind():
    model, tokens = network(EVERYTHING), batch(EVERYTHING)
    before = model(tokens)
    with torch.inference_mode():
        model(batch(EVERYTHING, tokens=31))
    after = model(tokens)
    after.sum().backward()
    assert torch.equal(before, after)
    assert list(model.buffers()) == []
