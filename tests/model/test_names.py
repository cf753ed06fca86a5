from __future__ import annotations

import pytest
import torch

from model.config import (
    BigramConfig,
    GPTConfig,
    RefinerConfig,
    RopeConfig,
    ValueEmbeddingConfig,
)
from model.descent import learners
from model.gpt import GPT
from model.names import all_virtual_names, matching, parameter_count, parameter_shapes, virtual_names
from model.protocol import Descent, LowRankSettings

BASE = {
    "smear": True, "unet_skips": True, "residual_mix": True, "ln_scale": True,
    "rope": RopeConfig(dims=16, reference_tokens=1024),
}  # fmt: skip
VE = {"value_embedding": ValueEmbeddingConfig(layers=(9, 10)), "xsa_layers": (7, 8, 9, 10)}
PR417 = GPTConfig(**BASE, **VE, bigram=BigramConfig(buckets=2048))
PR714 = GPTConfig(**BASE, **VE, bigram=BigramConfig(buckets=3072))
PR1033 = GPTConfig(**BASE, **VE, bigram=BigramConfig(buckets=2048), value_residual="additive")
PR1232 = GPTConfig(**BASE, bigram=BigramConfig(buckets=4096), value_residual="mix", gated_attention=True)
NETWORKS = {
    "plain": GPTConfig(layers=2, dim=16, heads=2, kv_heads=1, mlp_hidden=24, vocab=32),
    "one layer": GPTConfig(layers=1, dim=16, heads=2, kv_heads=1, mlp_hidden=24, vocab=32, unet_skips=True),
    "untied": GPTConfig(tied_head=False, memory_tokens=3),
    "pr417": PR417,
    "pr714": PR714,
    "pr1033": PR1033,
    "pr1232": PR1232,
    "flow": GPTConfig(**BASE, refiner=RefinerConfig(latent=64)),
}


@pytest.fixture
def on_meta():
    """Networks at full size, without memory."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_of_the_network_itself(on_meta, name):
    config = NETWORKS[name]
    built = {name: tuple(parameter.shape) for name, parameter in GPT(config).named_parameters()}
    assert parameter_shapes(config) == built


def test_counts_are_the_published_ones():
    counts = [parameter_count(config) for config in (PR417, PR714, PR1033, PR1232)]
    assert counts == [26_993_756, 27_124_828, 26_993_766, 27_137_223]


def learning(config, lora=None, **globs):
    found = learners(GPT(config), Descent(**globs), lora=lora)
    return sum(tensor.numel() for each in found for tensor in each.tensors)


def test_417_phase_one_learns_scales_and_mixes_only(on_meta):
    assert learning(PR417, adapt=("*.attn_scale", "*.mlp_scale", "*.residual_mix")) == 22_528


def test_417_phase_two_learns_three_blocks_the_scales_and_the_table(on_meta):
    blocks = ("blocks.8.*", "blocks.9.*", "blocks.10.*")
    globs = (*blocks, "*.attn_scale", "*.mlp_scale", "*.residual_mix", "embed.tokens")
    assert learning(PR417, adapt=globs) == 7_624_728


def test_1033_learns_the_last_two_blocks_the_table_and_every_scale(on_meta):
    """Published as freeze_blocks = 2; the two blocks are the ones that learn."""
    scales = ("*.attn_scale", "*.mlp_scale", "bigram.scale", "ve.scale", "ve.layer_scales", "vr.scales")
    learns = learning(PR1033, adapt=("blocks.9.*", "blocks.10.*", "embed.tokens", *scales))
    assert (learns, parameter_count(PR1033) - learns) == (5_256_222, 21_737_544)


def test_1232_freezes_the_first_two_blocks(on_meta):
    """Published as freeze_blocks = 2, too."""
    frozen = parameter_count(PR1232) - learning(PR1232, freeze=("blocks.0.*", "blocks.1.*"))
    assert frozen == 4_730_916


def test_398_and_714_learn_everything(on_meta):
    assert learning(PR714) == 27_124_828


def test_adapters_of_rank_8_on_q_and_v(on_meta):
    count = learning(PR417, lora=LowRankSettings(rank=8))
    assert count == 11 * 8 * (512 + 512) + 11 * 8 * (256 + 512)


def test_virtual_names_name_each_layer_of_a_bank():
    assert virtual_names("attn.q", (4, 16, 16)) == [f"blocks.{i}.attn.q" for i in range(4)]
    assert virtual_names("block.attn_scale", (4, 16))[3] == "blocks.3.attn_scale"
    assert virtual_names("skip.weights", (2, 16)) == ["skip.weights"]


def test_a_block_is_named_by_its_own_number():
    """blocks.1.* is not block 10: the number ends at the dot."""
    found = matching(("blocks.1.*",), all_virtual_names(PR417), "freeze")
    assert {name.split(".")[1] for name in found} == {"1"}
    assert len(found) == 10
