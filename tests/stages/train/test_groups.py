from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from model.config import BigramConfig, GPTConfig, RefinerConfig, RopeConfig, ValueEmbeddingConfig
from model.gpt import GPT
from stages.train.groups import NamedParameters, parameter_groups

FULL = GPTConfig(
    rope=RopeConfig(dims=16),
    bigram=BigramConfig(buckets=2048),
    smear=True,
    unet_skips=True,
    residual_mix=True,
    tied_head=False,
)


VE128 = replace(FULL, tied_head=True, value_embedding=ValueEmbeddingConfig(layers=(9, 10)))
GATED = replace(FULL, value_residual="mix", gated_attention=True, refiner=RefinerConfig(latent=64), memory_tokens=4)


def groups(config: GPTConfig, aux_matrices: Literal["muon", "adamw"] = "muon") -> dict[str, NamedParameters]:
    with torch.device("meta"):
        model = GPT(config)
    return parameter_groups(model, aux_matrices)


def weights(config: GPTConfig) -> dict[str, int]:
    return {group: sum(p.numel() for _, p in members) for group, members in groups(config).items()}


def test_each_group_holds_the_published_number_of_weights():
    assert weights(FULL) == {
        "matrix": 11 * (262_144 + 2 * 131_072 + 262_144 + 2 * 786_432) + 512 * 128,
        "embed": 1024 * 512 + 2048 * 128,
        "scalar": 11 * (8 + 1024 + 1024) + 5 * 512 + 512 + 1,
        "head": 1024 * 512,
    }


@pytest.mark.parametrize("aux_matrices", ["muon", "adamw"])
@pytest.mark.parametrize("config", [FULL, VE128, GATED, replace(VE128, value_residual="additive")])
def test_every_parameter_is_in_exactly_one_group(config, aux_matrices):
    with torch.device("meta"):
        model = GPT(config)
    names = [name for members in parameter_groups(model, aux_matrices).values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_plain_network_has_the_same_groups_with_fewer_members():
    counts = weights(GPTConfig())
    assert list(counts) == ["matrix", "embed", "scalar", "head"]
    assert counts["head"] == 0


def test_auxiliary_projections_train_with_the_matrices_or_with_the_scalars():
    projections = {"bigram.proj", "ve.proj"}
    for aux_matrices, home in ("muon", "matrix"), ("adamw", "scalar"):
        homes = {name: group for group, members in groups(VE128, aux_matrices).items() for name, _ in members}
        assert {homes[name] for name in projections} == {home}
        assert {name for name, group in homes.items() if group == "matrix"} - projections == {
            *("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down")
        }
        assert homes["ve.embed"] == "embed"


def test_gates_mixes_and_the_refiner_are_scalars_as_published():
    homes = {name: group for group, members in groups(GATED).items() for name, _ in members}
    added = {name for name in homes if name.startswith(("attn.gate", "attn.value_mix", "refiner."))}
    assert len(added) == 10
    assert {homes[name] for name in added} == {"scalar"}
    assert homes["memory.tokens"] == "embed"


def test_a_parameter_without_a_group_is_refused():
    model = nn.Module()
    model.register_parameter("surprise", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="'surprise' has none: add it to GROUPS"):
        parameter_groups(model)
