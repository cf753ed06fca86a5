"""The half of the audit that asks no network: bytes, data, sizes, clocks, identity. All is read, nothing runs again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from model.bytes import ByteTable
from model.stream import TokenStream
from stages.audit.account import Account
from stages.audit.byte_table import check_byte_table, check_counted_bytes, check_documents
from stages.audit.clocks import check_evaluation_clock, check_training_clock
from stages.audit.denominators import check_score
from stages.audit.disjoint import check_overlap
from stages.audit.finding import Finding
from stages.audit.identity import check_identity, check_lineage, check_score_files
from stages.audit.layers import archive_layers, code_layers
from stages.audit.paid_prefix import check_layers, val_needles
from stages.audit.sizes import check_sizes

Challenge = Mapping[str, Any]
DOCUMENTS = 64  # of val, decoded and counted
_DOCUMENT_TOKENS = 1 << 20  # of the beginning of val, from which they are taken


def audit_run(
    inputs: Mapping[str, Path],
    stream: TokenStream,
    tokenizer: sentencepiece.SentencePieceProcessor,
    account: Account,
    challenge: Challenge,
    opened: Collection[str] | None = None,
) -> list[Finding]:
    """What holds for every score of a run: T10, T12, T13, T14, B2 of T15, T16 and lineage.

    `opened` names what clean processes were seen to open, where a deep audit has looked.
    """
    table = ByteTable.load(inputs["tokenizer"] / "bytes.npy")
    tokens = stream.read(0, len(stream))
    documents = sample_documents(tokens[:_DOCUMENT_TOKENS], tokenizer.bos_id())
    archive, code = inputs["archive"] / "archive.fwy", inputs["bundle"] / "train_gpt.py"
    layers = (layer for of in (archive_layers(archive), code_layers(code)) for layer in of)
    overlap = _json(inputs["overlap"] / "overlap.json")
    given = {role: inputs[role] for role in ("archive", "bundle", "sizes", "tokenizer")}
    return [
        *check_byte_table(tokenizer, table.target_bytes),
        check_documents(tokenizer, documents, table.target_bytes),
        *check_overlap(overlap, account),
        check_layers(val_needles(tokenizer, tokens), layers),
        check_weighed(inputs, challenge["cap_bytes"], opened),
        check_training_clock(account, challenge),
        check_identity(account, given),
        *check_lineage(account),
    ]


def check_weighed(inputs: Mapping[str, Path], cap_bytes: int, opened: Collection[str] | None = None) -> Finding:
    """B1: the table of `weigh`, and the files: the code, and of the archive's folder what was opened or else all."""
    sizes = _json(inputs["sizes"] / "sizes.json")
    packed = {"code": sizes["code_bytes"], "model": sizes["model_bytes"]}
    model = {path.name: path.stat().st_size for path in inputs["archive"].iterdir()}
    if opened is not None:
        model = {name: size for name, size in model.items() if name in opened}
    code = {path.name: path.stat().st_size for path in inputs["bundle"].iterdir()}
    return check_sizes(packed, {**model, **code}, cap_bytes, traced=opened is not None)


def opened_files(findings: Iterable[Finding]) -> set[str] | None:
    """What T5 saw clean processes open in the shipped folder; None where no process was traced."""
    seen = [finding.evidence["shipped"] for finding in findings if "shipped" in finding.evidence]
    return {name for names in seen for name in names} if seen else None


def audit_score(
    folders: tuple[Path, Path],
    name: str,
    stream: TokenStream,
    tokenizer: sentencepiece.SentencePieceProcessor,
    account: Account,
    challenge: Challenge,
) -> list[Finding]:
    """What its files say of one score: T10 by counting again, T11, B3 of T15, T16. `folders` are score and ledger."""
    score, ledger = _json(folders[0] / "score.json"), _json(folders[1] / "ledger.json")
    once = score.get("each_target_once", score)
    step = account.evaluations().get(name)
    findings = [
        check_counted_bytes(tokenizer, stream.read(0, once["tokens"] + 1), once["tokens"], once["bytes"]),
        *check_score(score, challenge["fingerprint"]),
        check_whole_split(score),
        check_score_files(score, ledger, step),
    ]
    return [*findings, check_evaluation_clock(step, challenge)] if step is not None else findings


def check_whole_split(score: Mapping[str, Any]) -> Finding:
    """E1: how much of the stream the score is of. A partial one shows form and no coverage, so it is never legal."""
    targets, all_targets = score.get("each_target_once", score)["tokens"], score["stream_tokens"] - 1
    evidence = {"targets": targets, "stream_targets": all_targets}
    if "partial" in score["marks"]:
        says = f"a partial score, {targets:,} of {all_targets:,} targets: it shows form, not the whole split"
        return Finding(rule="E1", detector="T8", verdict="unknown", says=says, evidence=evidence)
    left = all_targets - targets
    if left >= score["context_tokens"]:
        says = f"{left:,} targets of the stream are not in the score, more than the last row may hold"
        return Finding(rule="E1", detector="T8", verdict="fail", says=says, evidence=evidence)
    tail = f", all but the {left:,} after the last whole row" if left else ""
    says = f"the score is of {targets:,} of {all_targets:,} targets{tail}"
    return Finding(rule="E1", detector="T8", verdict="pass", says=says, evidence=evidence)


def sample_documents(tokens: np.ndarray, bos: int, count: int = DOCUMENTS) -> list[list[int]]:
    """Up to `count` whole documents of the beginning of a stream, evenly spread, BOS left out."""
    starts = np.flatnonzero(tokens == bos)
    whole = [(int(a) + 1, int(b)) for a, b in pairwise(starts) if b - a > 1]
    step = max(1, len(whole) // count)
    return [tokens[a:b].tolist() for a, b in whole[::step][:count]]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
