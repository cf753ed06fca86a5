"""T12: what `overlap` has measured, as findings on rule D4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.audit.account import Account
from stages.audit.finding import Finding

SHINGLE_RATE = 0.01  # text that many pages share; the quickstart's corpus of package documentation has 0.001


def check_overlap(table: Mapping[str, Any], account: Account | None = None) -> list[Finding]:
    """Whole documents, and shingles as a rate. With an account: whether the table is about the shards in question."""
    documents, shingles = table["documents"], table["shingles"]
    share = documents["found"] / max(documents["val"], 1)
    findings = [
        Finding(
            rule="D4",
            detector="T12",
            verdict="fail" if documents["found"] else "pass",
            says=f"{documents['found']:,} of {documents['val']:,} val documents stand in train as a whole",
            evidence={"documents_share": share, **documents, "train": table["train"]},
        ),
        Finding(
            rule="D4",
            detector="T12",
            verdict="pass" if shingles["rate"] <= SHINGLE_RATE else "fail",
            says=f"{shingles['rate']:.2%} of val's runs of {shingles['tokens']} tokens stand in train",
            evidence={"shingle_rate": shingles["rate"], **shingles},
        ),
    ]
    if account is not None and not _same_shards(account):
        says = "the overlap was measured between other shards than were trained on and scored"
        findings.append(Finding(rule="D4", detector="T12", verdict="fail", says=says))
    return findings


def _same_shards(account: Account) -> bool:
    overlap, train = account.steps.get(("overlap", "")), account.steps.get(("train", ""))
    if overlap is None or train is None or overlap.inputs["train"][0] != train.inputs["shards"][0]:
        return False
    return all(step.inputs["val"][0] == overlap.inputs["val"][0] for step in account.evaluations().values())
