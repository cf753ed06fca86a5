from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from model.archive import read_archive
from model.gpt import GPT
from model.shards import write_shard
from model.weights import load_weights, save_weights
from stages.contract import StageError
from stages.evaluate.config import Config
from stages.evaluate.stage import run

TTT = {"chunk_tokens": 512, "epochs": 2, "batch_sequences": 3, "lr": 0.05}


def evaluate(tmp_path, inputs, runtime, name="out", **fields):
    out = tmp_path / name
    out.mkdir()
    fields = {"context_tokens": 64, "stride_tokens": 16, "batch_windows": 8, **fields}
    report = run(Config(**fields), inputs, out, runtime)
    return out, json.loads((out / "score" / "score.json").read_text()), report


def stream(inputs):
    """The tokens, read without any code of the project: a header of 1,024 bytes, then uint16."""
    shards = sorted(inputs["val"].glob("*.bin"))
    return np.concatenate([np.fromfile(path, dtype="<u2", offset=1024) for path in shards]).astype(np.int64)


def text_bytes(inputs, tokens):
    """UTF-8 length of the decoded text of each document."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(inputs["tokenizer"] / "tokenizer.model"))
    documents = np.split(tokens, np.flatnonzero(tokens == 1))
    return sum(len(pieces.decode(ids[1:].tolist()).encode()) for ids in documents if ids.size)


@torch.no_grad()
def naive_bpb(archive, tokens, byte_count, context, stride):
    tensors, config, _ = read_archive(archive)
    model = GPT(config)
    model.load_state_dict(tensors)
    nats, scored = 0.0, 0
    for begin in range(0, len(tokens) - 1, stride):
        window = torch.from_numpy(tokens[begin : begin + context + 1])
        logp = torch.log_softmax(model(window[None, :-1])[0].double(), dim=-1)
        for i in range(scored - begin, len(window) - 1):
            nats -= float(logp[i, window[i + 1]])
        scored = max(scored, begin + len(window) - 1)
    return nats / math.log(2) / byte_count


@pytest.mark.parametrize(("protocol", "stride"), [("roundtrip", 64), ("sliding", 16)])
def test_a_naive_scorer_agrees_on_the_archive(tmp_path, inputs, runtime, protocol, stride):
    _, score, report = evaluate(tmp_path, inputs, runtime, protocol=protocol)
    tokens = stream(inputs)
    count = text_bytes(inputs, tokens)
    assert (score["tokens"], score["bytes"]) == (6000, count)
    naive = naive_bpb(inputs["archive"] / "archive.fwy", tokens, count, 64, stride)
    assert score["bpb"] == pytest.approx(naive, abs=1e-4)
    assert score["bpb"] == score["nats"] / math.log(2) / count
    assert score["nats_per_token"] == score["nats"] / 6000
    assert (score["marks"], score["rules_broken"]) == ([], [])
    assert report["bpb"] == score["bpb"]


def test_the_same_score_gives_the_same_files(tmp_path, inputs, runtime):
    outs = [
        evaluate(tmp_path, inputs, runtime, name, protocol="ttt", ttt=TTT, max_targets=2000)[0] for name in ("a", "b")
    ]
    files = [{p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} for out in outs]
    assert files[0] == files[1]
    assert sorted(str(path) for path in files[0]) == [
        "ledger/documents.json", "ledger/head.npy", "ledger/ledger.json", "ledger/positions.json", "ledger/rows.npy",
        "score/score.json",
    ]  # fmt: skip


def test_adaptation_trains_on_all_chunks_but_the_last_and_changes_the_score(tmp_path, inputs, runtime):
    _, sliding, _ = evaluate(tmp_path, inputs, runtime, "sliding", protocol="sliding", max_targets=2000)
    _, adapted, report = evaluate(tmp_path, inputs, runtime, "ttt", protocol="ttt", ttt=TTT, max_targets=2000)
    assert report["ttt_updates"] == 3 * 2 * 3  # 3 of 4 chunks, 2 epochs, 8 rows in batches of 3
    assert adapted["bpb"] < sliding["bpb"]
    assert adapted["adaptation"]["steps"] == 18
    assert sliding["adaptation"] == {}


PRE_EVAL = {
    "first": {"epochs": 3, "lr": 0.01, "optimizer": "adamw", "adapt": ("*.attn_scale", "*.mlp_scale")},
    "second": {"epochs": 2, "lr": 0.05, "batch_sequences": 8, "lanes": 4, "microbatch_sequences": 3},
}


def test_adapting_before_scoring_carries_the_rules_that_it_breaks(tmp_path, inputs, runtime):
    fields = {"max_targets": 2000, "drop_partial_row": True}
    _, sliding, _ = evaluate(tmp_path, inputs, runtime, "sliding", protocol="sliding", **fields)
    _, score, report = evaluate(tmp_path, inputs, runtime, "pre", protocol="pre_eval", pre_eval=PRE_EVAL, **fields)
    assert [broken["rule"] for broken in score["rules_broken"]] == report["rules_broken"] == ["C3", "C1", "C4"]
    assert score["bpb"] < sliding["bpb"] - 0.05
    # 31 rows: one step of 32 for three epochs; lanes of 7 and 8 rows, two at a time, for two.
    assert report["ttt_updates"] == score["adaptation"]["steps"] == 3 + 2 * 4
    phases = score["adaptation"]["phases"]
    everything = sum(t.numel() for t in load_weights(inputs["weights"] / "weights.safetensors")[0].values())
    assert [phase["parameters"] for phase in phases] == [2 * 3 * 32, everything]
    assert phases[1]["last_loss"] < phases[1]["first_loss"]


def test_adapting_before_scoring_at_rate_zero_equals_sliding(tmp_path, inputs, runtime):
    still = {"first": {"epochs": 1, "lr": 0.0}}
    _, sliding, _ = evaluate(tmp_path, inputs, runtime, "sliding", protocol="sliding", max_targets=1000)
    _, score, _ = evaluate(tmp_path, inputs, runtime, "pre", protocol="pre_eval", pre_eval=still, max_targets=1000)
    assert score["ledger_sha256"] == sliding["ledger_sha256"]


TECHNIQUES = {
    "plain": {},
    "adapters": {"lr": 0.02, "optimizer": "adamw", "lora": {"rank": 4}},
    "adapters that forget": {"lr": 0.02, "optimizer": "adamw", "epochs": 4, "lora": {"rank": 4, "reset": "chunk"}},
    "adapters of documents": {
        "lr": 0.02, "optimizer": "adamw", "epochs": 8, "chunk_tokens": 64, "lora": {"rank": 4, "reset": "document"},
    },
    "shadow": {"polyak_decay": 0.5},
    "bytes": {"byte_weighted": True},
    "ramp": {"horizon_chunks": 4, "warmup_share": 0.3, "ramp_gain": 2.0},
    "grid": {"fake_quantise": {"bits": 6, "full_range": True}},
    "few": {"lr": 0.3, "adapt": ("blocks.2.*", "*.attn_scale"), "freeze": ("*.attn.k",)},
}  # fmt: skip


def test_each_way_to_adapt_beats_rate_zero_and_differs_from_the_others(tmp_path, inputs, runtime):
    """At rate 0 each of them is the network as it was (tests/model/test_adapt.py), so one such run stands for all."""
    fields = {"protocol": "ttt", "max_targets": 1500, "batch_windows": 16}
    still = evaluate(tmp_path, inputs, runtime, "still", ttt={**TTT, "lr": 0.0}, **fields)[1]
    scores = {
        name: evaluate(tmp_path, inputs, runtime, name, ttt={**TTT, **settings}, **fields)[1]
        for name, settings in TECHNIQUES.items()
    }
    gains = {name: still["bpb"] - score["bpb"] for name, score in scores.items()}
    assert min(gains.values()) > 0.005, gains
    assert len({score["nats"] for score in scores.values()}) == len(TECHNIQUES)
    assert all(score["rules_broken"] == [] for score in scores.values())


def test_shards_are_one_stream(tmp_path, inputs, runtime):
    whole = tmp_path / "whole"
    whole.mkdir()
    write_shard(whole / "val.bin", stream(inputs))
    a = evaluate(tmp_path, inputs, runtime, "a", protocol="sliding", max_targets=4000)[1]
    b = evaluate(tmp_path, {**inputs, "val": whole}, runtime, "b", protocol="sliding", max_targets=4000)[1]
    assert a == b


def test_weights_are_scored_as_floats_and_the_archive_dequantised(tmp_path, inputs, runtime):
    without = {role: folder for role, folder in inputs.items() if role != "archive"}
    raw = evaluate(tmp_path, without, runtime, "raw", of="raw", max_targets=500)[1]
    averaged = evaluate(tmp_path, without, runtime, "averaged", of="averaged", max_targets=500)[1]
    archive = evaluate(tmp_path, inputs, runtime, "archive", max_targets=500)[1]
    assert (raw["of"], averaged["of"], archive["of"]) == ("raw", "averaged", "archive")
    assert raw["nats"] == averaged["nats"]
    assert 0 < abs(raw["bpb"] - archive["bpb"]) < 0.1


@pytest.mark.parametrize(
    ("fields", "marks", "tokens"),
    [
        ({"max_targets": 1000}, ["partial"], 1000),
        ({"max_targets": 9999}, [], 6000),
        ({"drop_partial_row": True}, ["partial_row_dropped"], 5952),
        ({"drop_partial_row": True, "max_targets": 5952}, ["partial"], 5952),
        (
            {"drop_partial_row": True, "tail_rescore": True, "protocol": "sliding"},
            ["partial_row_dropped", "tail_rescored"],
            5952 + 3 * 16,
        ),
    ],
)
def test_a_score_that_is_not_of_the_whole_stream_once_is_marked(tmp_path, inputs, runtime, fields, marks, tokens):
    _, score, report = evaluate(tmp_path, inputs, runtime, **fields)
    assert score["marks"] == report["marks"] == marks
    assert score["tokens"] == tokens
    assert [broken["rule"] for broken in score["rules_broken"]] == (["C4"] if "tail_rescored" in marks else [])


def test_a_rescored_tail_shows_the_score_without_it(tmp_path, inputs, runtime):
    fields = {"drop_partial_row": True, "protocol": "sliding"}
    once = evaluate(tmp_path, inputs, runtime, "once", **fields)[1]
    again = evaluate(tmp_path, inputs, runtime, "again", tail_rescore=True, **fields)[1]
    assert again["each_target_once"] == {name: once[name] for name in again["each_target_once"]}
    assert again["windows"] == once["windows"] + 3
    assert 0 < again["nats"] - once["nats"] < 3 * 16 * 10


def test_the_ledger_shows_positions_documents_and_rows(tmp_path, inputs, runtime):
    out, score, _ = evaluate(tmp_path, inputs, runtime, protocol="sliding")
    read = {path.stem: json.loads(path.read_text()) for path in (out / "ledger").glob("*.json")}
    assert read["ledger"]["sha256"] == score["ledger_sha256"]
    positions = read["positions"]
    assert [p["position"] for p in positions] == list(range(64))
    for name, total in (("targets", "tokens"), ("nats", "nats"), ("bytes", "bytes")):
        assert sum(p[name] for p in positions) == pytest.approx(score[total], rel=1e-12)
    rows = np.load(out / "ledger" / "rows.npy")
    assert rows.shape == (len(read["ledger"]["sampled_targets"]), 512)
    tokens = stream(inputs)
    for document in read["documents"]:
        lo, count = document["first_target"], len(document["ids"])
        assert tokens[lo] == 1, "an excerpt starts after a BOS"
        assert document["ids"] == tokens[lo + 1 : lo + 1 + count].tolist()
        assert 1 not in document["ids"]
        assert len(document["nats"]) == len(document["bytes"]) == len(document["pieces"]) == count > 0
    assert len(read["documents"]) == 6
    sampled = dict(zip(read["ledger"]["sampled_targets"], rows, strict=True))
    shown = {d["first_target"] + i: nats for d in read["documents"] for i, nats in enumerate(d["nats"])}
    both = sampled.keys() & shown.keys()
    assert len(both) > 10
    for target in both:
        logp = torch.log_softmax(torch.from_numpy(sampled[target]).double(), dim=-1)
        assert -float(logp[tokens[target + 1]]) == pytest.approx(shown[target], abs=1e-5)


def test_progress_ends_at_the_last_target(tmp_path, inputs, runtime):
    runtime = replace(runtime, progress=tmp_path / "progress.jsonl")
    evaluate(tmp_path, inputs, runtime, protocol="ttt", ttt=TTT, max_targets=2000)
    last = json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])
    assert (last["done"], last["total"], last["unit"]) == (2000, 2000, "targets")
    assert last["bpb"] > 0


def copy_of(tmp_path, inputs, role):
    folder = tmp_path / f"copy-{role}"
    shutil.copytree(inputs[role], folder)
    return {**inputs, role: folder}, folder


def refused(text):
    return pytest.raises(StageError, match=text)


def test_a_stream_shorter_than_a_window_is_refused(tmp_path, inputs, runtime):
    with refused(r"one window of 8192 targets must fit into the stream; it has 6000; .*lower context_tokens"):
        evaluate(tmp_path, inputs, runtime, context_tokens=8192)
    assert not any((tmp_path / "out").iterdir())


def test_an_empty_val_folder_is_refused(tmp_path, inputs, runtime):
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused(r"validation tokens are \*\.bin shards; there are none"):
        evaluate(tmp_path, {**inputs, "val": empty}, runtime)


def test_a_token_beyond_the_byte_table_is_refused(tmp_path, inputs, runtime):
    """The network has 512 rows; ids 500 .. 511 are padding that no text of this tokenizer gives."""
    inputs, folder = copy_of(tmp_path, inputs, "val")
    write_shard(folder / "val-00002.bin", np.array([1, 500]))
    with refused(r"below the vocabulary's size 500; val-00002\.bin has 500 at token 1"):
        evaluate(tmp_path, inputs, runtime)


def test_a_damaged_archive_is_refused(tmp_path, inputs, runtime):
    inputs, folder = copy_of(tmp_path, inputs, "archive")
    content = bytearray((folder / "archive.fwy").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "archive.fwy").write_bytes(content)
    with refused(r"archive\.fwy is damaged"):
        evaluate(tmp_path, inputs, runtime)


def rewrite_weights(folder: Path, change):
    tensors, metadata = load_weights(folder / "weights.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    metadata = {"network": metadata["network"]}
    change(tensors, metadata)
    save_weights(folder / "weights.safetensors", tensors, metadata)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t, m: m.clear(), "a weights file says what network it is for"),
        (lambda t, m: t.pop("attn.q"), r"has nothing for 'attn\.q', the network \[3, 32, 32\]"),
        (lambda t, m: t.update(extra=torch.zeros(2)), r"has \[2\] for 'extra', the network nothing"),
        (lambda t, m: t.update({"attn.q": torch.zeros(3, 32, 31)}), r"has \[3, 32, 31\] for 'attn\.q'"),
        (lambda t, m: t["mlp.up"].fill_(math.nan), "C2: logits are finite; those of target 0 are not"),
        (lambda t, m: t["mlp.up"][1, 0].fill_(math.inf), "C2: logits are finite"),
    ],
)
def test_weights_that_are_not_of_their_network_are_refused(tmp_path, inputs, runtime, change, text):
    inputs, folder = copy_of(tmp_path, inputs, "weights")
    rewrite_weights(folder, change)
    with refused(text):
        evaluate(tmp_path, inputs, runtime, of="raw")


def test_freezing_a_parameter_that_is_not_there_is_refused(tmp_path, inputs, runtime):
    with refused(r"ttt\.freeze names .*'blocks\.3\.\*' matches none; nearest"):
        evaluate(tmp_path, inputs, runtime, protocol="ttt", ttt={**TTT, "freeze": ("blocks.3.*",)})


def test_an_adaptation_that_diverges_is_refused_with_the_chunk(tmp_path, inputs, runtime):
    ttt = {**TTT, "lr": 1e30, "clip_norm": 0}
    with refused(r"on chunk 0 they are not; lower ttt\.lr"):
        evaluate(tmp_path, inputs, runtime, protocol="ttt", ttt=ttt)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"protocol": "sliding", "context_tokens": 64, "stride_tokens": 65}, "stride_tokens is at most context_tokens"),
        (
            {"protocol": "ttt", "context_tokens": 64, "ttt": {"chunk_tokens": 63}},
            "at least one row of context_tokens 64",
        ),
        ({"protocol": "roundtrip", "tail_rescore": True}, "tail_rescore belongs to overlapping windows"),
        ({"protocol": "ttt", "ttt": {"batch_sequences": 0}}, "greater than or equal to 1"),
        ({"protocol": "ttt", "ttt": {"warmup_share": 0.1}}, "shares of a declared horizon; horizon_chunks is 0"),
        ({"protocol": "ttt", "ttt": {"ramp_gain": 2.0}}, "shares of a declared horizon; horizon_chunks is 0"),
        ({"ttt": {"lora": {"rank": 2}, "freeze": ("blocks.0.*",)}}, r"rank is 2 and ttt\.adapt or ttt\.freeze is set"),
        ({"ttt": {"lora": {"reset": "chunk"}}}, r"only adapters forget; ttt\.lora\.reset is 'chunk'"),
        ({"ttt": {"lora": {"rank": 2, "reset": "chunk"}, "polyak_decay": 0.9}}, r"polyak_decay is 0\.9; drop one"),
        ({"ttt": {"fake_quantise": {"bits": 1}}}, r"fake_quantise\.bits is 0 \(off\) or 2 to 8"),
        ({"protocol": "pre_eval"}, r"pre_eval\.first\.epochs is 0; set it"),
        (
            {"protocol": "ttt", "pre_eval": {"first": {"epochs": 2}}},
            r"protocol is 'ttt' and pre_eval\.first\.epochs is 2",
        ),
        ({"pre_eval": {"first": {"lanes": 3}}}, "batch_sequences is 32, lanes is 3"),
        ({"pre_eval": {"first": {"lanes": 2, "order": "permutation"}}}, "order is 'permutation' and lanes is 2; use 1"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused_before_anything_is_read(fields, text):
    with pytest.raises(ValueError, match=text):
        Config(**fields)


def test_a_phase_without_a_step_is_refused(tmp_path, inputs, runtime):
    phases = {"first": {"epochs": 1, "batch_sequences": 32, "drop_tail": True}}
    with refused(r"pre_eval\.first has 31 rows of 64 tokens for batches of 32; lower its batch_sequences"):
        evaluate(tmp_path, inputs, runtime, protocol="pre_eval", pre_eval=phases, max_targets=2000)


def test_tail_rescoring_needs_whole_rows(tmp_path, inputs, runtime):
    with refused("drop the partial row as well"):
        evaluate(tmp_path, inputs, runtime, protocol="sliding", tail_rescore=True, max_targets=1001)
