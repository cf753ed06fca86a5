"""The built-in recipes: published counts, claims that fit together, and a smoke scale that leaves no technique out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from configs.load import load_recipe, names
from model.config import GPTConfig
from model.gpt import GPT
from model.init import initialise
from model.names import matching, parameter_shapes, virtual_names
from model.passes import windows_of
from model.protocol import chunk_targets, descents
from model.rotary import rotary_base
from stages.quantize.rules import rules_for

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


def learns(recipe: str, part: str) -> list[int]:
    """How many numbers each training of a protocol changes, by the recipe's own globs."""
    loaded = load_recipe(recipe).recipe
    shapes = parameter_shapes(loaded.train.network)
    counts = Counter[str]()
    for name, shape in shapes.items():
        for virtual in (names := virtual_names(name, shape)):
            counts[virtual] += math.prod(shape) // len(names)
    found: list[int] = []
    for field, descent in descents(loaded.evaluate[part]):
        chosen = matching(descent.adapt, list(counts), field) if descent.adapt else set(counts)
        chosen -= matching(descent.freeze, list(counts), field)
        found.append(sum(counts[name] for name in chosen))
    return found


def test_what_a_recipe_adapts_has_exactly_the_published_size() -> None:
    assert learns("pr398", "published") == [26_829_913]
    assert learns("pr417", "published") == [22_528, 7_624_728]
    assert learns("pr714", "ttt") == learns("pr714-fit", "ttt") == [27_124_828]
    assert learns("pr1033", "ttt") == learns("pr1033", "published") == learns("pr1033-legal", "mixed") == [5_256_222]
    assert learns("pr1232", "ttt") == [27_137_223 - 4_730_916]


LAYOUTS = {  # tensors by stored bits; vectors are fp16 as well
    "pr398": {6: 66, 8: 2, 16: 1 + 47},
    "pr417": {6: 66, 8: 3, 16: 2 + 49},  # published 52: the two layer scales of the value embedding are two tensors
    "pr417-int5": {5: 20, 6: 41, 16: 2 + 43},
    "pr714": {6: 66, 8: 3, 16: 2 + 49},
    "pr1033": {6: 66, 8: 3, 16: 2 + 50},
    "pr1033-recurrent": {6: 66, 8: 3, 16: 2 + 49},
    "pr1232": {6: 66, 8: 2, 16: 1 + 80},
    "pr1232-flow": {6: 66, 8: 2, 16: 5 + 83},
}


@pytest.mark.parametrize("recipe", LAYOUTS)
def test_an_archive_holds_the_published_kinds_of_tensors(recipe: str) -> None:
    loaded = load_recipe(recipe).recipe
    shapes = parameter_shapes(loaded.train.network)
    rules = rules_for(shapes, loaded.quantize)
    stored = [name for each, shape in shapes.items() for name in virtual_names(each, shape)]
    assert loaded.quantize.vector_bits == 16
    assert Counter(rules[name].bits if name in rules else 16 for name in stored) == LAYOUTS[recipe]


@pytest.mark.parametrize(
    ("recipe", "part", "windows"),
    [
        ("base11", "sliding", 969_057),
        ("pr398", "published", 969_088),  # with the published tail
        ("pr417", "sliding32", 1_938_113),
        ("pr417", "published", 1_938_176),
        ("pr714", "ttt", 969_057),
        ("pr714", "roundtrip", 30_284),
    ],
)
def test_protocols_cut_the_validation_set_into_the_published_windows(recipe: str, part: str, windows: int) -> None:
    protocol = load_recipe(recipe).recipe.evaluate[part].to_protocol()
    cut = windows_of(protocol, 62_021_632 + 1)
    assert (cut.targets, cut.total) == (62_021_632, windows)
    if protocol.protocol == "ttt":
        assert len(list(cut.spans(chunk_targets(protocol)))) == protocol.ttt.horizon_chunks == 1_893


ON_AT_SMOKE = {
    "qat": {"pr417-int5"},
    "snapshots": {"pr417", "pr417-int5", "pr417-legal"},
    "pruning": {"pr417", "pr417-int5", "pr417-legal"},
    "bits by a budget": {"pr1232", "pr1232-flow"},
    "adaptation": {name for name in RECIPES if name.startswith("pr") and name != "pr417-int5"},
    "adapters": {"pr1033-recurrent"},
    "mixer": {"pr1033", "pr1033-legal"},
    "complementary loss": {"pr1033", "pr1033-legal"},
    "ema": {name for name in RECIPES if name.startswith("pr") and not name.startswith("pr417")} | {"base11"},
}


def test_smoke_leaves_every_technique_on_that_a_recipe_has() -> None:
    """What `tests/recipes` then proves to have done work: a counter above zero, or numbers that moved."""
    on: dict[str, set[str]] = {technique: set() for technique in ON_AT_SMOKE}
    for name in RECIPES:
        if name == "quickstart":  # which is its own smoke
            continue
        recipe = load_recipe(name, "smoke").recipe
        protocols, quantize = recipe.evaluate.values(), recipe.quantize
        groups = [quantize.matrices, quantize.embeddings, *quantize.overrides.values()]
        has = {
            "qat": recipe.train.qat.live,
            "snapshots": recipe.train.snapshots.every.steps > 0,
            "pruning": any(group.prune for group in groups),
            "bits by a budget": quantize.fit.budget_bytes > 0,
            "adaptation": any(list(descents(protocol)) for protocol in protocols),
            "adapters": any(protocol.ttt.lora.rank for protocol in protocols),
            "mixer": any(protocol.mixer.kind != "off" for protocol in protocols),
            "complementary loss": recipe.train.complement.alpha > 0,
            "ema": recipe.train.ema.enabled,
        }
        for technique in has:
            on[technique] |= {name} if has[technique] else set()
    assert on == {technique: names & set(RECIPES) for technique, names in ON_AT_SMOKE.items()}


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
