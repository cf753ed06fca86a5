"""Every protocol of `evaluate`, audited as it was scored: in a process that has archive and tokenizer and no more."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smallrun import make_inputs

from model.archive import read_archive, write_archive
from model.load import load_bytes, open_stream
from model.passes import windows_of
from model.protocol import chunk_targets, from_dict
from stages.audit.config import Config
from stages.audit.cost import Meter, handed_out, trained_on
from stages.audit.ours import ProtocolScorer
from stages.audit.protocols import Audited, audit_protocols
from stages.audit.records import LedgerFile
from stages.audit.remote import ScorerFailed, ScorerProcess, ship
from stages.audit.scored import audit_scorer
from stages.audit.settings import Settings
from stages.contract import Device, Runtime
from stages.evaluate.config import Config as EvaluateConfig
from stages.evaluate.stage import run as evaluate

BASE = {"context_tokens": 64, "stride_tokens": 16, "batch_windows": 16, "max_targets": 2048}
TTT = {"chunk_tokens": 512, "epochs": 2, "batch_sequences": 4}
MIXER = {"active_after_tokens": 256, "chunk_tokens": 512}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "raw": {"of": "raw"},
    "averaged": {"of": "averaged"},
    "roundtrip": {},
    "sliding": {"protocol": "sliding", "temperature": 1.2},
    "ttt": {"protocol": "ttt", "ttt": TTT},
    "lora": {"protocol": "ttt", "ttt": {**TTT, "lora": {"rank": 2, "reset": "document"}}},
    "polyak": {"protocol": "ttt", "ttt": {**TTT, "polyak_decay": 0.9, "optimizer": "adamw"}},
    "ngram": {"protocol": "sliding", "mixer": {"kind": "ngram", **MIXER}},
    "ppm": {"protocol": "ttt", "ttt": TTT, "mixer": {"kind": "ppm", **MIXER}},
    "published": {"protocol": "sliding", "mixer": {"kind": "published_ngram", "buckets": 4096, **MIXER}},
    "pre_eval": {"protocol": "pre_eval", "pre_eval": {"first": {"epochs": 2, "batch_sequences": 8, "lr": 0.01}}},
    "tail": {"protocol": "sliding", "tail_rescore": True, "drop_partial_row": True},
}
ILLEGAL = {"published": {"C2"}, "pre_eval": {"C1", "C3", "C4"}, "tail": {"C4", "E1"}}
LEGAL = sorted(set(PROTOCOLS) - set(ILLEGAL) - {"raw", "averaged"})


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's folders by role, every protocol scored."""
    root = tmp_path_factory.mktemp("audited")
    folders = make_inputs(root)
    for name, values in PROTOCOLS.items():
        out = root / "out" / name
        out.mkdir(parents=True)
        evaluate(EvaluateConfig.model_validate({**BASE, **values}), folders, out, runtime_in(root / "runtime" / name))
        for role in ("ledger", "score"):
            (root / f"{role}s").mkdir(exist_ok=True)
            shutil.move(out / role, root / f"{role}s" / name)
    return {**folders, "ledgers": root / "ledgers", "scores": root / "scores"}


def runtime_in(folder: Path) -> Runtime:
    for name in ("scratch", "checkpoints"):
        (folder / name).mkdir(parents=True)
    return Runtime(scratch=folder / "scratch", checkpoints=folder / "checkpoints", device=Device(threads=2))


def config(*names: str) -> Config:
    chosen = {name: EvaluateConfig.model_validate({**BASE, **PROTOCOLS[name]}) for name in names or PROTOCOLS}
    return Config(protocols={name: each.model_dump(mode="json") for name, each in chosen.items()})


@pytest.fixture(scope="session")
def audited(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Audited]:
    """All of them, audited at once, as a run does it."""
    return audit_protocols(config(), inputs, runtime_in(tmp_path_factory.mktemp("audit")))


@pytest.fixture(scope="module")
def process(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScorerProcess]:
    """A scorer's process."""
    scratch = tmp_path_factory.mktemp("process")
    with ScorerProcess(ship(inputs, scratch / "shipped"), scratch, Device(threads=2)) as started:
        yield started


def failing(audited: Audited) -> set[str]:
    return {finding.rule for finding in audited.findings if finding.verdict == "fail"}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_protocol_passes_every_detector(audited, name):
    assert {finding.verdict for finding in audited[name].findings} == {"pass"}
    assert {finding.rule for finding in audited[name].findings} == {"C1", "C2", "C3", "C4", "E1", "E4"}


@pytest.mark.parametrize("name", sorted(ILLEGAL))
def test_an_illegal_protocol_breaks_its_rules_and_no_other(audited, name):
    assert failing(audited[name]) == ILLEGAL[name]


def test_diagnostics_are_not_audited(audited):
    assert set(audited) == set(PROTOCOLS) - {"raw", "averaged"}


@pytest.mark.parametrize("name", ["ttt", "lora", "ngram", "ppm", "published"])
def test_what_learns_is_looked_at_before_and_after_it_has_learned(audited, name):
    (state,) = [f for f in audited[name].findings if f.detector == "T3"]
    assert state.evidence["updates"] == 1
    assert state.evidence["parts_that_updates_changed"][0] > 0


def test_the_audit_costs_less_than_fifteen_percent_of_what_evaluation_hands_out(audited, inputs):
    stream = open_stream(inputs["val"], 512)
    handed = sum(handed_out(windows_of(from_dict(values), len(stream))) for values in config().protocols.values())
    assert 0 < sum(each.forward_tokens for each in audited.values()) < 0.15 * handed


@pytest.mark.parametrize("name", ["roundtrip", "sliding", "ttt", "tail", "pre_eval"])
def test_the_cost_of_evaluation_is_counted_as_evaluation_counts_it(inputs, tmp_path, name):
    values = EvaluateConfig.model_validate({**BASE, **PROTOCOLS[name]})
    (tmp_path / "out").mkdir()
    report = evaluate(values, inputs, tmp_path / "out", runtime_in(tmp_path))
    protocol = from_dict(values.model_dump(mode="json"))
    windows = windows_of(protocol, len(open_stream(inputs["val"], 512)))
    assert (handed_out(windows), trained_on(protocol, windows)) == (report["forward_tokens"], report["trained_tokens"])


def test_full_scale_costs_a_small_share_of_evaluation():
    stride = {"protocol": "sliding", "stride_tokens": 64}
    chunks = {"chunk_tokens": 32_768, "epochs": 3}
    published = [{}, stride, {**stride, "protocol": "ttt", "ttt": chunks}]
    of = [from_dict(EvaluateConfig.model_validate(each).model_dump()) for each in published]
    windows = [windows_of(each, 62_021_633) for each in of]
    assert sum(map(handed_out, windows)) == 62_021_632 // 2048 * 2048 + 2 * ((969_057 - 1) * 2048 + 2048)
    least_of_a_probe = sum(each.context * 8 for each in windows) + 3 * 32_768
    assert least_of_a_probe < 0.001 * sum(map(handed_out, windows))


def test_a_ledger_that_was_changed_afterwards_is_not_reproduced(inputs, process, tmp_path):
    forged = shutil.copytree(inputs["ledgers"] / "ttt", tmp_path / "ledger")
    head_N2 = np.load(forged / "head.npy")
    head_N2[:64, 0] *= 0.99
    np.save(forged / "head.npy", head_N2)
    values, protocol, stream, windows = protocol_of("ttt", inputs)
    settings = Settings(lot="x", budget_tokens=4000, update_tokens=1024, batch_windows=16)
    findings = audit_scorer(
        lambda: process.open(values), stream, windows, chunk_targets(protocol), settings, LedgerFile.read(forged)
    )
    assert {finding.detector for finding in findings if finding.verdict == "fail"} == {"T0"}


def protocol_of(name: str, inputs: dict[str, Path]):
    values = config(name).protocols[name]
    protocol = from_dict(values)
    stream = open_stream(inputs["val"], load_bytes(inputs["tokenizer"]).vocab)
    return values, protocol, stream, windows_of(protocol, len(stream))


def test_the_replay_is_in_evaluate_s_own_batches_bit_for_bit(inputs, process):
    values, protocol, stream, windows = protocol_of("ttt", inputs)
    meter, settings = Meter(), Settings(lot="x", budget_tokens=30_000, update_tokens=1024, batch_windows=16, chunks=3)
    ledger = LedgerFile.read(inputs["ledgers"] / "ttt")
    findings = audit_scorer(
        lambda: process.open(values), stream, windows, chunk_targets(protocol), settings, ledger, meter
    )
    (replay,) = [finding for finding in findings if finding.detector == "T0"]
    assert replay.verdict == "pass"
    assert replay.evidence["updates"] == 3
    assert replay.evidence["largest_difference"] == 0
    assert replay.evidence["equal_bits_demanded"] > 1024
    assert meter.trained_tokens == 3 * 1024


@pytest.mark.parametrize("name", ["ttt", "ngram", "published", "pre_eval"])
def test_the_other_process_answers_as_this_one(inputs, process, tmp_path, name):
    values, _, stream, _ = protocol_of(name, inputs)
    remote, local = process.open(values), ProtocolScorer(ship(inputs, tmp_path / "here"), values, torch.device("cpu"))
    inputs_BT = torch.from_numpy(stream.read(0, 256)).view(4, 64)
    answers = []
    for scorer in (remote, local):
        scorer.reset()
        if scorer.exposed:
            scorer.expose(torch.from_numpy(stream.read(0, 513)))
        scorer.update(torch.from_numpy(stream.read(0, 513)), 0)
        answers.append([scorer.score(inputs_BT, 16), scorer.price(inputs_BT, 16, torch.arange(32).repeat(64, 1))])
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)
    assert remote.normalised == local.normalised == (name != "published")
    assert remote.log_probabilities == local.log_probabilities == (name == "ngram")
    assert remote.trained_tokens == local.trained_tokens


def test_reset_forgets_what_was_learned(inputs, process):
    values, _, stream, _ = protocol_of("ttt", inputs)
    scorer = process.open(values)
    before = dict(scorer.state())
    scorer.update(torch.from_numpy(stream.read(0, 513)), 0)
    assert dict(scorer.state()) != before
    scorer.reset()
    assert dict(scorer.state()) == before


def test_the_scorer_s_process_knows_archive_and_tokenizer_and_no_path_of_val(inputs, process):
    pid = process.pid
    assert sorted(os.listdir(f"/proc/{pid}/cwd")) == ["archive.fwy", "bytes.npy", "tokenizer.model"]
    told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    assert str(inputs["val"]).encode() not in told
    opened = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not [path for path in opened if path.startswith("/") and path.endswith(".bin")]


def test_a_scorer_that_cannot_answer_leaves_the_rules_unknown(inputs, tmp_path):
    broken = tmp_path / "archive"
    broken.mkdir()
    (broken / "archive.fwy").write_bytes(b"no archive")
    found = audit_protocols(config("sliding"), {**inputs, "archive": broken}, runtime_in(tmp_path / "audit"))
    verdicts = {(finding.rule, finding.detector): finding.verdict for finding in found["sliding"].findings}
    assert verdicts["C1", "T0"] == "unknown"
    assert verdicts["C4", "T4"] == "pass"


def test_a_process_that_ends_is_an_error_that_says_so(inputs, tmp_path):
    with ScorerProcess(ship(inputs, tmp_path / "shipped"), tmp_path, Device(threads=2)) as process:
        os.kill(process.pid, 9)
        with pytest.raises(ScorerFailed, match="ended while it was asked to open"):
            process.open(config("sliding").protocols["sliding"])


def test_two_audits_write_the_same_findings(inputs, tmp_path, audited):
    again = audit_protocols(config(), inputs, runtime_in(tmp_path))
    assert json.dumps({n: a.to_dict() for n, a in again.items()}) == json.dumps(
        {n: a.to_dict() for n, a in audited.items()}
    )
    assert replace(audited["ttt"]) == again["ttt"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "broken"), [("ttt", set()), ("pre_eval", {"C1", "C3", "C4"})])
def test_a_deep_audit_scores_again_alone_shorter_and_on_two_ranks(inputs, tmp_path, name, broken):
    deep = config(name).model_copy(update={"deep": True})
    found = audit_protocols(deep, inputs, runtime_in(tmp_path / "audit"))[name]
    verdicts = {(finding.rule, finding.detector): finding.verdict for finding in found.findings}
    assert verdicts["E4", "T5"] in ("pass", "unknown" if shutil.which("strace") is None else "pass")
    assert verdicts["E4", "T17"] == "pass"
    assert verdicts["C1", "T6"] == ("fail" if broken else "pass")
    assert verdicts["C1", "T7"] == "pass"
    assert failing(found) == broken


@pytest.mark.slow
def test_another_archive_is_not_what_scored(inputs, tmp_path):
    other = tmp_path / "archive"
    other.mkdir()
    tensors, network, _ = read_archive(inputs["archive"] / "archive.fwy")
    write_archive(other / "archive.fwy", {name: tensor * 1.01 for name, tensor in tensors.items()}, network)
    deep = config("sliding").model_copy(update={"deep": True})
    found = audit_protocols(deep, {**inputs, "archive": other}, runtime_in(tmp_path / "audit"))["sliding"]
    assert {finding.detector for finding in found.findings if finding.verdict == "fail"} == {"T0", "T6", "T17"}
