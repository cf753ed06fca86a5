"""The built-in recipes: published counts, claims that fit together, and a smoke scale that leaves no technique out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from configs.load import load_recipe, names
from model.config import GPTConfig
from model.gpt import GPT
from model.init import initialise
from model.rotary import rotary_base

RECIPES = names("recipe")
PARAMETERS = {
    "pr398": 26_829_913,
    "pr417": 26_993_756,
    "pr417-int5": 25_779_281,
    "pr714": 27_124_828,
    "pr1033": 26_993_766,
    "pr1033-recurrent": 26_993_756,
    "pr1232": 27_137_223,
    "pr1232-flow": 27_235_848,
}


def network(recipe: str, scale: str = "full") -> GPTConfig:
    return load_recipe(recipe, scale).recipe.train.network


def parameters(config: GPTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_a_published_system_has_exactly_its_published_parameters(recipe: str) -> None:
    assert parameters(network(recipe)) == PARAMETERS[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_claims_fit_the_recipe_and_each_other(recipe: str) -> None:
    published = load_recipe(recipe).recipe.published
    if "parameters" in published:
        assert published["parameters"] == parameters(network(recipe))
    seeds = published.get("seeds")
    if seeds is not None:
        lists = {name: value for name, value in published.items() if isinstance(value, list)}
        assert {name: len(value) for name, value in lists.items()} == dict.fromkeys(lists, len(seeds))


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_a_published_system_has_a_verdict(recipe: str) -> None:
    assert load_recipe(recipe).recipe.published["verdict"]


def test_both_published_bases_of_the_rotary_frequencies_are_reached() -> None:
    bases = {recipe: rotary_base(network(recipe).rope, network(recipe).rope.dims or 64, 2048) for recipe in PARAMETERS}
    assert {recipe for recipe, base in bases.items() if base == 10_000.0} == {"pr714", "pr417-int5"}
    assert {round(base, 2) for base in bases.values()} == {10_000.0, 22_081.79}


SIZES = ("vocab", "dim", "heads", "kv_heads", "mlp_hidden")


@pytest.mark.parametrize("recipe", RECIPES)
def test_smoke_changes_sizes_only(recipe: str) -> None:
    full, smoke = network(recipe), network(recipe, "smoke")
    assert smoke.dim < full.dim
    resized = replace(
        smoke,
        **{name: getattr(full, name) for name in SIZES},
        bigram=replace(smoke.bigram, buckets=full.bigram.buckets, dim=full.bigram.dim),
        value_embedding=replace(smoke.value_embedding, dim=full.value_embedding.dim),
        refiner=replace(smoke.refiner, latent=full.refiner.latent, hidden=full.refiner.hidden),
        rope=replace(smoke.rope, dims=full.rope.dims, reference_tokens=full.rope.reference_tokens),
    )
    assert resized == full
    assert bool(smoke.bigram.buckets) == bool(full.bigram.buckets)
    assert bool(smoke.refiner.latent) == bool(full.refiner.latent)


@pytest.mark.parametrize("recipe", RECIPES)
def test_smoke_exercises_every_feature(recipe: str) -> None:
    """Every parameter of the smoke network gets gradient after one step away from its zeros."""
    train = load_recipe(recipe, "smoke").recipe.train
    model = GPT(train.network)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    ids = torch.randint(train.network.vocab, (2, train.sequence_tokens + 1), generator=generator)
    functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    rope = train.network.rope
    if rope.reference_tokens:
        assert rotary_base(rope, rope.dims or train.network.head_dim, train.sequence_tokens) > rope.base
