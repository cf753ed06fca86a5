"""Which tensor is stored how: the published counts, and no parameter without a group."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from model.config import BigramConfig, GPTConfig, RopeConfig
from model.gpt import GPT
from stages.quantize.groups import NAMES, group_of, matrix_count
from stages.train.groups import GROUPS

PR398 = GPTConfig(
    rope=RopeConfig(dims=16, reference_tokens=1024),
    bigram=BigramConfig(buckets=2048),
    smear=True,
    unet_skips=True,
    residual_mix=True,
    ln_scale=True,
)


def shapes(config: GPTConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}


def test_the_published_network_has_66_int6_and_2_int8_tensors():
    counts: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for name, shape in shapes(PR398).items():
        group = group_of(name, shape, 65_536)
        counts[group] += matrix_count(shape) if group != "vectors" else 1
        weights[group] += shape.numel()
    assert (counts["matrices"], counts["embeddings"]) == (66, 2)
    assert weights["matrices"] == 25_952_256
    assert weights.total() == 26_829_913
    assert group_of("bigram.proj", (512, 128), 65_536) == "small"  # exactly 65,536 weights


def test_the_size_limit_counts_one_matrix_of_a_bank_and_is_inclusive():
    assert group_of("attn.q", (11, 256, 256), 65_536) == "small"
    assert group_of("attn.q", (11, 256, 257), 65_536) == "matrices"
    assert group_of("bigram.proj", (512, 128), 65_535) == "matrices"
    assert group_of("embed.tokens", (1024, 64), 65_536) == "small"
    assert group_of("head.weight", (1024, 65), 65_536) == "embeddings"


def test_vectors_stay_vectors_whatever_the_limit():
    for name in ("block.residual_mix", "skip.weights", "smear.gate", "attn.q_gain"):
        assert group_of(name, (11, 2, 512), 0) == "vectors"


@pytest.mark.parametrize("config", [PR398, GPTConfig(), replace(PR398, tied_head=False)])
def test_every_parameter_of_every_network_has_a_group(config):
    for name, shape in shapes(config).items():
        assert group_of(name, shape, 1000) in ("matrices", "embeddings", "small", "vectors")


def test_every_parameter_that_can_be_trained_can_be_quantised():
    trained = {name for names in GROUPS.values() for name in names}
    assert trained <= {name for names in NAMES.values() for name in names}


def test_a_parameter_without_a_group_is_an_error():
    with pytest.raises(ValueError, match=r"'new\.thing' has none"):
        group_of("new.thing", (3, 3), 0)
