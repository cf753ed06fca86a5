from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass, replace

import pytest

from model.config import (
    BigramConfig,
    GPTConfig,
    RecurrenceConfig,
    RefinerConfig,
    RopeConfig,
    ValueEmbeddingConfig,
    from_dict,
    to_dict,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is a count of at least 1; got 0"),
        ({"heads": 7}, "heads must divide dim; got dim 512, heads 7"),
        ({"kv_heads": 3}, "kv_heads must divide heads"),
        ({"dim": 24}, "must be even for RoPE; got 3"),
        ({"rope": RopeConfig(dims=7)}, "rope.dims is even and at most the head width 64; got 7"),
        ({"rope": RopeConfig(dims=66)}, "rope.dims is even and at most the head width 64; got 66"),
        ({"vocab": 65_537}, "vocab is at most 65536; got 65537"),
        ({"bigram": BigramConfig(buckets=1)}, "bigram.buckets is 0"),
        ({"softcap": -1.0}, "softcap is positive, or 0 for none; got -1.0"),
        ({"bigram": BigramConfig(buckets=9, dim=0)}, "bigram.dim is at least 1; got 0"),
        ({"xsa_layers": (7, 11)}, "xsa_layers lists layers of this network, 0 .. 10; got [7, 11], where 11 is none"),
        ({"xsa_layers": (-1,)}, "xsa_layers lists layers of this network, 0 .. 10; got [-1], where -1 is none"),
        ({"xsa_layers": (7, 8, 7)}, "xsa_layers lists each layer once; got [7, 8, 7]"),
        (
            {"value_embedding": ValueEmbeddingConfig(layers=(9, 12))},
            "value_embedding.layers lists layers of this network, 0 .. 10; got [9, 12], where 12 is none",
        ),
        (
            {"value_embedding": ValueEmbeddingConfig(layers=(9, 9))},
            "value_embedding.layers lists each layer once; got [9, 9]",
        ),
        ({"value_embedding": ValueEmbeddingConfig(dim=0)}, "value_embedding.dim is at least 1; got 0"),
        (
            {"layers": 5, "recurrence": RecurrenceConfig(layers=(4, 5))},
            "recurrence.layers lists layers of this network, 0 .. 4; got [4, 5], where 5 is none",
        ),
        ({"recurrence": RecurrenceConfig(layers=(4, 4))}, "recurrence.layers lists each layer once; got [4, 4]"),
        ({"recurrence": RecurrenceConfig(layers=(4,), passes=1)}, "recurrence.passes is at least 2; got 1"),
        ({"refiner": RefinerConfig(latent=-1)}, "refiner.latent is at least 0; got -1"),
        ({"refiner": RefinerConfig(latent=8, hidden=0)}, "refiner.hidden is at least 1; got 0"),
        ({"memory_tokens": -1}, "memory_tokens is at least 0; got -1"),
        ({"layers": 1, "value_residual": "mix"}, "got 'mix' with layers 1; have at least 2 layers, or leave it out"),
        (
            {"value_residual": "additive", "recurrence": RecurrenceConfig(layers=(0, 4))},
            "got 'additive' with recurrence.layers [0, 4]; repeat layers of 1 .. 10 only",
        ),
    ],
)
def test_an_impossible_shape_is_refused_at_construction(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(GPTConfig(), **changes)


def test_layers_may_be_listed_in_any_order():
    assert GPTConfig(xsa_layers=(10, 0, 3)).xsa_layers == (10, 0, 3)


def test_a_repeated_layer_counts_its_passes():
    config = GPTConfig(recurrence=RecurrenceConfig(layers=(4, 5), passes=3))
    assert [config.passes(layer) for layer in (3, 4, 5, 6)] == [1, 3, 3, 1]


def test_a_config_survives_json():
    config = GPTConfig(
        dim=64,
        rope=RopeConfig(dims=4),
        bigram=BigramConfig(buckets=9),
        smear=True,
        xsa_layers=(3, 1),
        value_embedding=ValueEmbeddingConfig(layers=(9,)),
        value_residual="mix",
        recurrence=RecurrenceConfig(layers=(4, 5)),
    )
    back = from_dict(json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert hash(back) == hash(config)


def test_a_config_from_before_a_feature_has_it_off():
    raw = to_dict(GPTConfig(dim=64))
    for name in ("xsa_layers", "value_embedding", "value_residual", "recurrence", "memory_tokens", "refiner"):
        del raw[name]
    assert from_dict(raw) == GPTConfig(dim=64)


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(ValueError, match="GPTConfig has no field 'dims'"):
        from_dict({**to_dict(GPTConfig()), "dims": 3})


def test_every_default_is_a_plain_transformer():
    off = {"smear": False, "unet_skips": False, "residual_mix": False, "ln_scale": False, "tied_head": True}
    assert {name: getattr(GPTConfig(), name) for name in off} == off
    assert (GPTConfig().bigram.buckets, GPTConfig().rope.dims, GPTConfig().rope.reference_tokens) == (0, 0, 0)
    assert (GPTConfig().xsa_layers, GPTConfig().value_embedding.layers, GPTConfig().recurrence.layers) == ((), (), ())
    assert (GPTConfig().value_residual, GPTConfig().gated_attention) == ("", False)
    assert (GPTConfig().memory_tokens, GPTConfig().refiner.latent) == (0, 0)


def test_the_written_form_holds_every_field():
    def names(cls, raw):
        assert {f.name for f in fields(cls)} == set(raw)
        for f in fields(cls):
            if is_dataclass(value := getattr(GPTConfig(), f.name, None)):
                names(type(value), raw[f.name])

    names(GPTConfig, to_dict(GPTConfig()))
