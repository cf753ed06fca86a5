"""T16 and lineage: the score is of the archive that is weighed, and that is made from what it may be made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.audit.account import Account, StepFacts
from stages.audit.finding import Finding

CALIBRATION = ("quantize", "compress")


def role_digest(folder: Path) -> str:
    """The digest of a role's folder, as the store makes it: sha256 over [path, sha256, bytes] of its sorted files."""
    lines: list[tuple[str, str, int]] = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append((path.relative_to(folder).as_posix(), digest, path.stat().st_size))
    return hashlib.sha256(json.dumps(sorted(lines), separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


def check_identity(account: Account, given: Mapping[str, Path]) -> Finding:
    """R1: keys are made of their components, and every step read what the step above made, down to the audit.

    Args:
        account: of all steps.
        given: role -> folder that the audit itself was given, of `archive`, `bundle`, `sizes`, `tokenizer`.
    """
    wrong = [
        f"{step.label}: its key is not that of its components"
        for step in account.steps.values()
        if key_of(step) != step.key
    ]
    wrong += [f"{step.label}: no source is named" for step in account.steps.values() if len(step.source) != 64]
    for step in account.steps.values():
        for role, (digest, origins) in step.inputs.items():
            if step.components.get("inputs", {}).get(role) != digest:
                wrong.append(f"{step.label}: its key and its lineage disagree about {role}")
            above = account.steps.get(origins[0][:2]) if len(origins) == 1 else None
            # One shard of many is a part of a role, which has no digest of its own.
            if above is not None and step.stage != "tokenize" and above.outputs.get(origins[0][2]) != digest:
                wrong.append(f"{step.label}: {role} is not what {above.label} made")
    makers = {"archive": "compress", "bundle": "bundle", "sizes": "weigh", "tokenizer": "vocabulary"}
    for role, folder in given.items():
        maker = account.steps.get((makers[role], ""))
        if maker is None or maker.outputs.get(role) != role_digest(folder):
            wrong.append(f"the {role} at hand is not what its record says")
    wrong += _one_system(account)
    evidence = {"steps": len(account.steps), "wrong": wrong}
    if wrong:
        return Finding(rule="R1", detector="T16", verdict="fail", says="; ".join(wrong[:3]), evidence=evidence)
    says = f"{len(account.steps)} records: keys, sources and digests agree, from documents to scores"
    return Finding(rule="R1", detector="T16", verdict="pass", says=says, evidence=evidence)


def key_of(step: StepFacts) -> str:
    """The key that a step's components make; records hold them in the very form that is hashed."""
    text = json.dumps(step.components, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _one_system(account: Account) -> list[str]:
    """Every score and the size table are of one archive."""
    readers = [step for step in account.steps.values() if "archive" in step.inputs and step.stage != "audit"]
    if len({step.inputs["archive"][0] for step in readers}) > 1:
        return [f"{', '.join(step.label for step in readers)} are not about one archive"]
    return []


def check_score_files(score: Mapping[str, Any], ledger: Mapping[str, Any], step: StepFacts | None) -> Finding:
    """R1 of one protocol: score and ledger are of one pass, and of the step that the account names."""
    wrong: list[str] = []
    if score["ledger_sha256"] != ledger["sha256"]:
        wrong.append("score and ledger are of different passes")
    if step is None:
        wrong.append("no record tells of this score")
    evidence = {"ledger_sha256": ledger["sha256"], "wrong": wrong}
    says = "; ".join(wrong) or "score and ledger are of one pass, which has a record"
    return Finding(rule="R1", detector="T16", verdict="fail" if wrong else "pass", says=says, evidence=evidence)


def check_lineage(account: Account) -> list[Finding]:
    """D1 and D3: nothing above the archive reads the validation set, calibration least of all."""
    makers = account.made_by("compress")
    if not makers:
        says = "no record says what the archive was made from"
        return [Finding(rule=rule, detector="lineage", verdict="unknown", says=says) for rule in ("D1", "D3")]
    readers = [step.label for step in makers if step.reads_val]
    calibrated = [step.label for step in makers if step.stage in CALIBRATION and step.reads_val]
    findings = [_lineage("D1", readers, makers, f"{len(makers)} steps made the archive; none of them read val")]
    calibration = [step for step in makers if step.stage in CALIBRATION]
    reads = any(step.reads_train_tokens for step in calibration)
    clean = "calibration read train shards only" if reads else "no calibration read any data"
    return [*findings, _lineage("D3", calibrated, calibration, clean)]


def _lineage(rule: str, readers: list[str], steps: list[StepFacts], clean: str) -> Finding:
    evidence = {"steps": [step.label for step in steps], "read_val": readers}
    says = f"{', '.join(readers)} read the validation set before the archive was made" if readers else clean
    return Finding(rule=rule, detector="lineage", verdict="fail" if readers else "pass", says=says, evidence=evidence)
