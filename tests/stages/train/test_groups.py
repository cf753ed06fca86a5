from __future__ import annotations

import pytest
import torch
from torch import nn

from model.config import BigramConfig, GPTConfig, RopeConfig
from model.gpt import GPT
from stages.train.groups import parameter_groups

FULL = GPTConfig(
    rope=RopeConfig(dims=16),
    bigram=BigramConfig(buckets=2048),
    smear=True,
    unet_skips=True,
    residual_mix=True,
    tied_head=False,
)


def weights(config: GPTConfig) -> dict[str, int]:
    with torch.device("meta"):
        model = GPT(config)
    return {group: sum(p.numel() for _, p in members) for group, members in parameter_groups(model).items()}


def test_each_group_holds_the_published_number_of_weights():
    assert weights(FULL) == {
        "matrix": 11 * (262_144 + 2 * 131_072 + 262_144 + 2 * 786_432) + 512 * 128,
        "embed": 1024 * 512 + 2048 * 128,
        "scalar": 11 * (8 + 1024 + 1024) + 5 * 512 + 512 + 1,
        "head": 1024 * 512,
    }


def test_every_parameter_is_in_exactly_one_group():
    with torch.device("meta"):
        model = GPT(FULL)
    names = [name for members in parameter_groups(model).values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_plain_network_has_the_same_groups_with_fewer_members():
    counts = weights(GPTConfig())
    assert list(counts) == ["matrix", "embed", "scalar", "head"]
    assert counts["head"] == 0


def test_a_parameter_without_a_group_is_refused():
    model = nn.Module()
    model.register_parameter("surprise", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="'surprise' has none: add it to GROUPS"):
        parameter_groups(model)
