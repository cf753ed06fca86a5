from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from model.protocol import MixerSettings
from stages.evaluate.config import Config
from stages.evaluate.stage import run

SLIDING = {"protocol": "sliding", "context_tokens": 64, "stride_tokens": 16, "batch_windows": 8, "max_targets": 3000}
MIXERS = {
    "off": {},
    "ngram": {"kind": "ngram", "max_order": 4, "weight": 0.5},
    "ppm": {"kind": "ppm", "max_order": 2, "weight": 0.5},
    "published_ngram": {"kind": "published_ngram", "max_order": 10, "weight": 0.2, "weight_span": 0.55, "buckets": 512},
}
COMMON = {"active_after_tokens": 500, "chunk_tokens": 512}


def evaluate(tmp_path, inputs, runtime, kind, **fields):
    out = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    config = Config(mixer=MixerSettings(**COMMON, **MIXERS[kind]), **{**SLIDING, **fields})
    report = run(config, inputs, out, runtime)
    return json.loads((out / "score" / "score.json").read_text()), report, out


@pytest.mark.parametrize("kind", ["ngram", "ppm"])
def test_an_expert_helps_a_network_that_knows_nothing_and_breaks_no_rule(tmp_path, inputs, runtime, kind):
    without, _, _ = evaluate(tmp_path, inputs, runtime, "off")
    score, report, _ = evaluate(tmp_path, inputs, runtime, kind)
    assert score["bpb"] < without["bpb"] - 0.3
    assert score["rules_broken"] == []
    # The chunk of targets 0 .. 511 ends within a batch of windows; the first window after it is mixed.
    assert report["mixed_positions"] == score["mixer"]["mixed_positions"] == 3000 - 512
    assert score["mixer"]["kind"] == kind
    assert (without["mixer"], score["adaptation"]) == ({}, {})


def test_the_published_mixer_names_rule_c2_in_every_output(tmp_path, inputs, runtime):
    score, report, _ = evaluate(tmp_path, inputs, runtime, "published_ngram")
    assert [broken["rule"] for broken in score["rules_broken"]] == report["rules_broken"] == ["C2"]
    assert report["mixed_positions"] == 3000 - 512


@pytest.mark.parametrize("kind", ["ngram", "published_ngram"])
def test_the_same_mixed_score_gives_the_same_files(tmp_path, inputs, runtime, kind):
    outs = [evaluate(tmp_path, inputs, runtime, kind)[2] for _ in range(2)]
    files = [{p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} for out in outs]
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["ngram", "published_ngram"])
def test_network_and_expert_both_learn_from_the_chunks_of_ttt(tmp_path, inputs, runtime, kind):
    fields = {"protocol": "ttt", "ttt": {"chunk_tokens": 600, "lr": 0.05, "epochs": 1, "batch_sequences": 4}}
    alone, _, _ = evaluate(tmp_path, inputs, runtime, "off", **fields)
    score, report, _ = evaluate(tmp_path, inputs, runtime, kind, **fields)
    assert score["bpb"] != alone["bpb"]
    assert report["ttt_updates"] == score["adaptation"]["steps"] > 0
    # Windows whose first target lies in chunk 0 score up to target 607: 64 + 34 strides of 16.
    assert report["mixed_positions"] == 3000 - 608


def test_a_temperature_changes_every_protocol(tmp_path, inputs, runtime):
    for protocol in ("roundtrip", "sliding"):
        warm, cool = (
            evaluate(tmp_path, inputs, runtime, "off", protocol=protocol, temperature=t)[0]["bpb"] for t in (1.0, 3.0)
        )
        assert cool < warm - 0.05  # of a network that is sure of nothing it should be sure of


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"protocol": "roundtrip", "mixer": {"kind": "ngram"}}, "a mixer belongs to a protocol whose windows overlap"),
        ({"mixer": {"kind": "ngram", "chunk_tokens": 15}}, "at least one stride of 16; got 15"),
        ({"mixer": {"kind": "hashed"}}, "published_ngram"),
        ({"mixer": {"max_order": 1}}, "greater than or equal to 2"),
        ({"mixer": {"weight": 0.5, "weight_span": 0.5}}, r"between 0 and 1.*got 0\.5 \+ 0\.5"),
        ({"mixer": {"weight": 0.0}}, "set kind = 'off'"),
        ({"mixer": {"discount": 1.0}}, "less than 1"),
        ({"mixer": {"buckets": 0}}, "greater than or equal to 1"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_a_mixer_that_cannot_be_is_refused(fields, text):
    with pytest.raises(ValidationError, match=text):
        Config.model_validate({**SLIDING, **fields})
