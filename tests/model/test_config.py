from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace

import pytest

from model.config import BigramConfig, GPTConfig, RopeConfig, from_dict, to_dict


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
    ],
)
def test_an_impossible_shape_is_refused_at_construction(changes, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        replace(GPTConfig(), **changes)


def test_a_config_survives_json():
    config = GPTConfig(dim=64, rope=RopeConfig(dims=4), bigram=BigramConfig(buckets=9), smear=True)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(ValueError, match="GPTConfig has no field 'dims'"):
        from_dict({**to_dict(GPTConfig()), "dims": 3})


def test_every_default_is_a_plain_transformer():
    off = {"smear": False, "unet_skips": False, "residual_mix": False, "ln_scale": False, "tied_head": True}
    assert {name: getattr(GPTConfig(), name) for name in off} == off
    assert (GPTConfig().bigram.buckets, GPTConfig().rope.dims, GPTConfig().rope.reference_tokens) == (0, 0, 0)


def test_the_written_form_holds_every_field():
    def names(cls, raw):
        assert {f.name for f in fields(cls)} == set(raw)
        for f in fields(cls):
            if is_dataclass(value := getattr(GPTConfig(), f.name, None)):
                names(type(value), raw[f.name])

    names(GPTConfig, to_dict(GPTConfig()))
