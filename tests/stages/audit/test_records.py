"""Sizes, clocks, identity, lineage and overlap: verdicts on what other stages left on record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import challenge
from stages.audit.account import Account
from stages.audit.clocks import check_evaluation_clock, check_training_clock
from stages.audit.disjoint import check_overlap
from stages.audit.finding import Finding
from stages.audit.identity import check_identity, check_lineage, check_score_files, role_digest
from stages.audit.on_record import check_weighed, check_whole_split, opened_files
from stages.audit.policy import judge
from stages.audit.sizes import check_published_sizes, check_sizes
from stages.contract import StageError

RULES = challenge()
H100 = {"kind": "cuda", "count": 8, "threads": 2, "model": "H100"}
CPU = {"kind": "cpu", "count": 1, "threads": 2, "model": ""}
CAP = 16_000_000


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Book:
    """Writes an account of a run, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def step(self, stage: str, part: str = "", outputs: tuple[str, ...] = (), **more: Any) -> None:
        reads: dict[str, list[tuple[str, str, str]]] = more.pop("reads", {})
        inputs = {role: {"digest": self._digest(origins), "from": origins} for role, origins in reads.items()}
        parts = {"stage": stage, "part": part, "inputs": {role: each["digest"] for role, each in inputs.items()}}
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        facts = {"device": None, "process_s": 1.0, "timer_s": None, "source": digest(stage)}
        made = {role: digest(f"{stage} {part} {role}") for role in outputs}
        self.steps.append(
            {"stage": stage, "part": part, "key": digest(text), "components": parts, **facts, "inputs": inputs}
            | {"outputs": made, **more}
        )

    def _digest(self, origins: list[tuple[str, str, str]]) -> str:
        made = {(s["stage"], s["part"], role): d for s in self.steps for role, d in s["outputs"].items()}
        found = [made[origin] for origin in origins]
        return found[0] if len(found) == 1 else digest(" ".join(found))

    @property
    def account(self) -> Account:
        return Account.of(json.loads(json.dumps(self.steps)))


def book(device: dict[str, Any] = H100, train_s: float = 590.0, timer_s: float = 580.0, **changes: Any) -> Book:
    """A whole run. `quantize` and `average` may read more than they should."""
    b = Book()
    train, val = ("tokenize", "train-0", "shards"), ("tokenize", "val-0", "shards")
    b.step("corpus", outputs=("train", "val"))
    b.step("vocabulary", outputs=("tokenizer",), reads={"documents": [("corpus", "", "train")]})
    for split in ("train", "val"):
        b.step("tokenize", f"{split}-0", ("shards",), reads={"documents": [("corpus", "", split)]})
    b.step("overlap", outputs=("overlap",), reads={"train": [train], "val": [val]}, process_s=4000.0)
    b.step("train", outputs=("raw",), reads={"shards": [train]}, device=device, process_s=train_s, timer_s=timer_s)
    b.step("average", outputs=("weights",), reads={"raw": [("train", "", "raw")]})
    reads = {"weights": [("average", "", "weights")], **changes.get("quantize", {})}
    b.step("quantize", outputs=("quantized",), reads=reads, device=device, process_s=changes.get("quantize_s", 5.0))
    b.step("compress", outputs=("archive",), reads={"quantized": [("quantize", "", "quantized")]})
    b.step("bundle", outputs=("bundle",))
    archive = ("compress", "", "archive")
    b.step("weigh", outputs=("sizes",), reads={"archive": [archive], "bundle": [("bundle", "", "bundle")]})
    for part, seconds in (("sliding", 90.0), ("ttt", changes.get("ttt_s", 420.0))):
        reads = {"archive": [archive], "tokenizer": [("vocabulary", "", "tokenizer")], "val": [val]}
        b.step(
            "evaluate", part, ("score", "ledger"), reads=reads, device=device, process_s=seconds + 30, timer_s=seconds
        )
    return b


VAL = [("tokenize", "val-0", "shards")]
TRAIN = [("tokenize", "train-0", "shards")]


@pytest.mark.parametrize("over", [0, 1])
def test_the_cap_is_decimal_and_holds_to_the_byte(over: int):
    finding = check_sizes({"code": 30_000, "model": CAP - 30_000 + over}, {"train_gpt.py": 30_000}, CAP)
    assert finding.verdict == ("fail" if over else "pass")


def test_the_two_ways_of_weighing_decide_by_policy():
    """#1855: 15,907,550 bytes as it would be packed, 16,033,980 in the folder."""
    finding = check_sizes(
        {"code": 31_999, "model": 15_875_551}, {"train_gpt.py": 158_429, "model": 15_875_551}, CAP, traced=True
    )
    policies = {name: judge([finding], {**p, "rules": ["B1"]})["verdict"] for name, p in RULES["policies"].items()}
    assert policies == {"strict": "not_legal", "board": "legal"}


def test_files_are_those_that_a_clean_process_was_seen_to_open(tmp_path: Path):
    inputs = {role: tmp_path / role for role in ("archive", "bundle", "sizes")}
    for folder in inputs.values():
        folder.mkdir()
    for name, size in (("archive/archive.fwy", 700), ("archive/more.bin", 500), ("bundle/train_gpt.py", 90)):
        (tmp_path / name).write_bytes(bytes(size))
    (inputs["sizes"] / "sizes.json").write_text('{"code_bytes": 90, "model_bytes": 700}', encoding="utf-8")
    all_of_it = check_weighed(inputs, 1000)
    seen = Finding(rule="E4", detector="T5", verdict="pass", says="", evidence={"shipped": ["archive.fwy", "val.bin"]})
    opened = check_weighed(inputs, 1000, opened_files([seen]))
    assert (all_of_it.verdict, all_of_it.evidence["files_bytes"], all_of_it.evidence["traced"]) == ("fail", 1290, False)
    assert (opened.verdict, opened.evidence["files_bytes"], opened.evidence["traced"]) == ("pass", 790, True)
    assert opened_files([]) is None


def test_published_sizes_are_judged_by_the_largest():
    finding = check_published_sizes([16_064_457, 15_129_153, 16_064_549], CAP)
    assert finding.verdict == "fail"
    assert "2 of 3 archives over the cap, by up to 64,549 bytes" in finding.says
    assert check_published_sizes([15_532_949], CAP).verdict == "pass"


def test_training_is_judged_by_every_stage_that_reads_train_shards():
    assert check_training_clock(book().account, RULES).verdict == "pass"
    calibrated = book(quantize={"shards": TRAIN}, quantize_s=25.0).account
    finding = check_training_clock(calibrated, RULES)
    assert finding.verdict == "fail"
    assert set(finding.evidence["steps"]) == {"train", "quantize"}
    assert finding.evidence["process_s"] == 615.0


def test_overlap_reads_train_shards_and_makes_no_weights():
    assert "overlap" not in check_training_clock(book().account, RULES).evidence["steps"]


def test_clocks_are_told_and_not_judged_on_other_hardware():
    for device in (CPU, {**H100, "count": 16}, {**H100, "model": "A100"}):
        account = book(device=device, train_s=38_432.0, timer_s=38_000.0).account
        for finding in (
            check_training_clock(account, RULES),
            check_evaluation_clock(account.steps["evaluate", "ttt"], RULES),
        ):
            assert finding.verdict == "not_applicable"
            assert finding.evidence["process_s"] > 0


def test_a_clock_that_the_policies_read_differently():
    finding = check_training_clock(book(train_s=640.0, timer_s=600.1).account, RULES)
    policies = {name: judge([finding], {**p, "rules": ["B2"]})["verdict"] for name, p in RULES["policies"].items()}
    assert policies == {"strict": "not_legal", "board": "legal"}
    over = check_training_clock(book(train_s=640.0, timer_s=601.153).account, RULES)  # #1908
    assert judge([over], {**RULES["policies"]["board"], "rules": ["B2"]})["verdict"] == "not_legal"


def test_scoring_over_time_is_caught():
    assert check_evaluation_clock(book(ttt_s=895.0).account.steps["evaluate", "ttt"], RULES).verdict == "fail"
    assert check_evaluation_clock(book().account.steps["evaluate", "ttt"], RULES).verdict == "pass"


def test_a_resumed_training_counts_all_of_its_attempts():
    finding = check_training_clock(book(train_s=100.0, timer_s=700.0).account, RULES)
    assert finding.verdict == "fail"


def test_lineage_of_an_honest_run_passes():
    assert {f.rule: f.verdict for f in check_lineage(book().account)} == {"D1": "pass", "D3": "pass"}
    calibrated = check_lineage(book(quantize={"shards": TRAIN}).account)
    assert {f.verdict for f in calibrated} == {"pass"}


def test_a_quantiser_that_is_calibrated_on_val_is_caught_for_its_rule():
    findings = {f.rule: f for f in check_lineage(book(quantize={"shards": VAL}).account)}
    assert findings["D3"].verdict == "fail"
    assert findings["D3"].evidence["read_val"] == ["quantize"]
    assert findings["D1"].verdict == "fail"


def test_training_on_val_is_caught_wherever_it_enters():
    b = book()
    documents = Book()
    documents.steps = [s for s in b.steps if s["stage"] == "corpus"]
    documents.step("tokenize", "train-0", ("shards",), reads={"documents": [("corpus", "", "val")]})
    documents.step("train", outputs=("raw",), reads={"shards": [("tokenize", "train-0", "shards")]})
    documents.step("compress", outputs=("archive",), reads={"quantized": [("train", "", "raw")]})
    findings = {f.rule: f.verdict for f in check_lineage(documents.account)}
    assert findings == {"D1": "fail", "D3": "pass"}


def test_without_records_lineage_is_unknown():
    assert {f.verdict for f in check_lineage(Account({}))} == {"unknown"}


def test_identity_of_an_honest_run_passes():
    finding = check_identity(book().account, {})
    assert finding.verdict == "pass", finding.says


@pytest.mark.parametrize("what", ["key", "components", "digest", "source", "archive"])
def test_identity_sees_each_thing_that_was_changed(what: str):
    b = book()
    train = next(s for s in b.steps if s["stage"] == "train")
    sliding = next(s for s in b.steps if s["part"] == "sliding")
    if what == "key":
        train["key"] = digest("other")
    elif what == "components":
        train["components"] = {**train["components"], "seed": 5}
    elif what == "digest":
        train["inputs"]["shards"]["digest"] = digest("other shards")
    elif what == "source":
        train["source"] = ""
    else:
        sliding["inputs"]["archive"]["digest"] = digest("another archive")
    assert check_identity(b.account, {}).verdict == "fail"


def test_the_files_at_hand_are_those_on_record(tmp_path: Path):
    b = book()
    (tmp_path / "archive.fwy").write_bytes(b"weights")
    next(s for s in b.steps if s["stage"] == "compress")["outputs"]["archive"] = role_digest(tmp_path)
    for step in b.steps:  # whoever reads the archive reads these bytes
        if "archive" in step["inputs"]:
            step["inputs"]["archive"]["digest"] = role_digest(tmp_path)
            step["components"]["inputs"]["archive"] = role_digest(tmp_path)
            text = json.dumps(step["components"], sort_keys=True, separators=(",", ":"))
            step["key"] = digest(text)
    assert check_identity(b.account, {"archive": tmp_path}).verdict == "pass"
    (tmp_path / "archive.fwy").write_bytes(b"weightS")
    assert "at hand" in check_identity(b.account, {"archive": tmp_path}).says


def test_a_role_has_the_digest_that_the_store_gives_it(tmp_path: Path):
    from artifacts.digest import hash_file
    from artifacts.record import File, digest_files

    for name in ("b/x", "a", "b/é", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    files = [File(name, *hash_file(tmp_path / name)) for name in ("b/x", "a", "b/é", "b.txt")]
    assert role_digest(tmp_path) == digest_files(files)


def test_score_and_ledger_belong_together():
    step = book().account.steps["evaluate", "ttt"]
    assert check_score_files({"ledger_sha256": "a"}, {"sha256": "a"}, step).verdict == "pass"
    assert check_score_files({"ledger_sha256": "a"}, {"sha256": "b"}, step).verdict == "fail"
    assert check_score_files({"ledger_sha256": "a"}, {"sha256": "a"}, None).verdict == "fail"


def score_of(targets: int, stream: int, *marks: str) -> dict[str, Any]:
    return {"tokens": targets, "stream_tokens": stream, "context_tokens": 64, "marks": list(marks)}


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (score_of(999, 1000), "pass"),
        (score_of(960, 1000, "partial_row_dropped"), "pass"),
        (score_of(500, 1000, "partial"), "unknown"),
        (score_of(500, 1000), "fail"),
    ],
)
def test_a_score_is_of_the_whole_split_or_says_that_it_is_not(score: dict[str, Any], verdict: str):
    assert check_whole_split(score).verdict == verdict


def overlap(found: int, rate: float) -> dict[str, Any]:
    return {
        "train": {"documents": 100, "tokens": 10_000},
        "documents": {"val": 50, "val_tokens": 5000, "found": found, "found_tokens": 10, "examples": []},
        "shingles": {"tokens": 64, "val": 4000, "one_in": 1, "sampled": 4000, "found": 4, "rate": rate},
    }


@pytest.mark.parametrize(
    ("found", "rate", "strict", "board"),
    [
        (0, 0.001, "legal", "legal"),
        (40, 0.8, "not_legal", "not_legal"),  # `--val-docs=10000`: four fifths of val were trained on
        (0, 0.8, "not_legal", "not_legal"),  # the same, each document cut
        (0, 0.02, "not_legal", "legal"),
    ],
)
def test_overlap_is_judged_by_documents_and_by_shingles(found: int, rate: float, strict: str, board: str):
    findings = check_overlap(overlap(found, rate))
    policies = {name: judge(findings, {**p, "rules": ["D4"]})["verdict"] for name, p in RULES["policies"].items()}
    assert policies == {"strict": strict, "board": board}


def test_an_overlap_of_other_shards_proves_nothing():
    assert {f.verdict for f in check_overlap(overlap(0, 0.0), book().account)} == {"pass"}
    b = book()
    next(s for s in b.steps if s["stage"] == "overlap")["inputs"]["val"]["digest"] = digest("other")
    assert "fail" in {f.verdict for f in check_overlap(overlap(0, 0.0), b.account)}


def test_an_account_of_another_schema_is_refused(tmp_path: Path):
    (tmp_path / "records.json").write_text('{"schema": 2, "steps": []}', encoding="utf-8")
    with pytest.raises(StageError, match="schema 1"):
        Account.read(tmp_path / "records.json")
