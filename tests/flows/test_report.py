"""The report: what a person reads is what the records hold."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from artifacts.store import Store
from flows.report import write_report


def score(of: str, protocol: str, bpb: float, **more: Any) -> dict[str, Any]:
    return {
        "of": of,
        "protocol": protocol,
        "bpb": bpb,
        "nats_per_token": 2.5 * bpb * math.log(2),
        "tokens": 400,
        "bytes": 1000,
        "stride_tokens": 64,
        "context_tokens": 256,
        "marks": [],
        "rules_broken": [],
        **more,
    }


DOCUMENT = {"document": 3, "pieces": ["<b>", "▁bold", "<0xC3>"], "nats": [0.1, 2.0, 9.0], "bytes": [3, 5, 1]}
POSITIONS = [{"position": i, "targets": 10, "nats": 30.0 - i / 8, "bytes": 25} for i in range(64)]
CURVE = [
    {"step": s, "train_loss": 7.0 - s / 20, "lr_scale": 1.0, "val_loss": 6.0 if s == 20 else None} for s in range(40)
]


class Bench:
    """A store with the records of one run, and the run's document."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store.open(folder / "store")
        self.steps: list[dict[str, Any]] = []

    def add(self, stage: str, files: dict[str, Any], report: dict[str, Any] | None = None, part: str = "") -> None:
        out = self.folder / "out" / stage / (part or "all")
        for path, content in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        key = (stage + part).encode().hex().ljust(64, "0")[:64]
        self.store.publish(
            stage=stage,
            part=part,
            key=key,
            folder=out,
            components={},
            report=report or {},
            inputs={},
            provenance={"seconds": 1.5, "packages": {"torch": "9.9"}},
        )
        self.steps.append(
            {"stage": stage, "part": part, "state": "ran", "key": key, "artifact": f"x/{stage}@1", "seconds": 1.0}
        )

    def evaluate(self, name: str, table: dict[str, Any]) -> None:
        ledger = {"ledger/positions.json": POSITIONS, "ledger/documents.json": [DOCUMENT]}
        self.add("evaluate", {"score/score.json": table, **ledger}, part=name)

    def page(self) -> str:
        run = {
            "id": "20260101-000000-abcd",
            "recipe": "mine",
            "scale": "full",
            "seed": 1,
            "started": "2026-01-01T00:00:00+00:00",
            "steps": self.steps,
            "resolved": {"about": "A <recipe>.", "train": {"steps": 40}, "quantize": {"small_weights": 7}},
            "origins": {"train.steps": "recipe mine"},
        }
        return write_report(self.store, run, self.folder / "report").read_text(encoding="utf-8")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def whole(bench: Bench) -> Bench:
    train = {
        "params": 1234567, "tokens": 99, "seconds": 3.0, "device": "cpu", "steps": 40, "tokens_per_s": 33.0,
        "epochs": 0.5, "ended_by": "steps",
    }  # fmt: skip
    bench.add("train", {"curve/curve.jsonl": "\n".join(json.dumps(point) for point in CURVE)}, train)
    errors = [
        {"name": "attn.q", "bits": 6, "relative_rmse": 0.02},
        {"name": "smear.gate", "bits": 16, "relative_rmse": 0.0},
    ]
    bench.add("quantize", {"errors/errors.json": errors})
    sizes = {"total_bytes": 900, "cap_bytes": 1000, "oversize": False}
    parts = [{"part": "int6 codes", "bytes": 800}, {"part": "code", "bytes": 100}]
    bench.add("weigh", {"sizes/sizes.json": {**sizes, "parts": parts}}, sizes)
    bench.evaluate("sliding", score("archive", "sliding", 1.25))
    bench.evaluate("raw", score("raw", "roundtrip", 1.4))
    bench.evaluate("roundtrip", score("archive", "roundtrip", 1.5, marks=["partial"]))
    return bench


def test_the_page_needs_nothing_but_itself(whole: Bench) -> None:
    page = whole.page()
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)  # names of XML, never fetched
    assert not re.search(r"<(script|link|img|iframe)\b|url\(", page.replace("url(#", "("))


def test_rungs_go_from_raw_weights_to_the_score_whatever_order_they_finished_in(whole: Bench) -> None:
    rungs = re.findall(r"<tr><td>(raw|roundtrip|sliding)</td>", whole.page())
    assert rungs == ["raw", "roundtrip", "sliding"]


def test_the_headline_is_the_last_rung_of_the_archive(whole: Bench) -> None:
    assert "<b>1.2500</b>" in whole.page()


def test_a_score_that_breaks_a_rule_is_no_headline_where_there_is_another(whole: Bench) -> None:
    broken = [{"rule": "C3", "why": "adapts on all of val first"}]
    whole.evaluate("published", score("archive", "pre_eval", 0.5, rules_broken=broken))
    page = whole.page()
    assert "<b>1.2500</b>" in page
    assert "breaks C3" in page


def test_the_only_score_carries_its_marks_and_the_rules_that_it_breaks(bench: Bench) -> None:
    bench.evaluate("x", score("archive", "ttt", 1.0, marks=["partial"], rules_broken=[{"rule": "C2", "why": "ratio"}]))
    page = bench.page()
    for mark in ("partial", "breaks rule C2", "not audited"):
        assert f'<span class="mark warn">{mark}</span>' in page


def test_text_of_documents_and_recipes_is_shown_and_never_markup(whole: Bench) -> None:
    page = whole.page()
    assert "A &lt;recipe&gt;." in page
    assert ">&lt;b&gt;</span>" in page
    assert "<b>bold" not in page


def test_the_price_of_each_token_is_in_bits(whole: Bench) -> None:
    assert f'title="{2.0 / math.log(2):.2f} bits"> bold</span>' in whole.page()


def test_chosen_fields_stand_apart_from_defaults(whole: Bench) -> None:
    chosen, defaults = whole.page().split("Fields at their default")
    assert "train.steps" in chosen
    assert "quantize.small_weights" not in chosen
    assert "quantize.small_weights" in defaults


def test_every_picture_is_a_file_too(whole: Bench) -> None:
    whole.page()
    made = {path.name for path in (whole.folder / "report").glob("*.png")}
    assert made == {"ladder.png", "loss.png", "sizes.png", "position.png", "quantisation.png"}


def test_a_run_that_stopped_early_has_a_page(bench: Bench) -> None:
    assert "no protocol has scored the archive" in bench.page()


def test_the_same_records_give_the_same_page(whole: Bench) -> None:
    assert whole.page() == whole.page()


def verdict(outcome: str) -> dict[str, Any]:
    """verdict.json of one score, as the audit writes it."""
    rule = {"rule": "C4", "detector": "T4", "verdict": "fail" if outcome == "not_legal" else "pass", "says": "<order>"}
    judged = {"verdict": outcome, "because": [], "not_judged": []}
    score = {"verdict": {"strict": outcome, "board": "legal"}, "findings": [rule]}
    return {
        "verdict": {"strict": outcome, "board": "legal"},
        "rules": {"C4": rule["verdict"]},
        "scores": {"sliding": {**score, "policies": {"strict": judged, "board": {**judged, "verdict": "legal"}}}},
        "run": [],
        "rulings": {"horizon": {"question": "may it?", "source": "#1"}},
        "forward_tokens": 12,
        "evaluation_forward_tokens": 100,
    }


def audit(bench: Bench, outcome: str) -> None:
    table = verdict(outcome)
    policies = {part: score["policies"] for part, score in table["scores"].items()}
    bench.add("audit", {"verdict/verdict.json": table}, {"verdict": table["verdict"], "scores": policies})


def test_a_score_without_audit_is_marked_and_has_no_section(whole: Bench) -> None:
    page = whole.page()
    assert "not audited" in page
    assert "<h2>Audit</h2>" not in page


def test_a_score_that_is_not_legal_is_marked_by_policy_with_every_finding(whole: Bench) -> None:
    audit(whole, "not_legal")
    page = whole.page()
    assert "not audited" not in page
    assert '<span class="mark warn">board: legal, strict: not legal</span>' in page
    assert "&lt;order&gt;" in page
    assert "Open question “horizon”: may it? (#1)" in page
    assert "12 forward tokens, 12.0% of evaluation" in page


def test_a_legal_score_carries_no_mark(whole: Bench) -> None:
    audit(whole, "legal")
    head = whole.page().partition("</header>")[0]
    assert "mark warn" not in head
