"""Audit a finished run: every detector's findings, one verdict per rule, and what each policy makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from model.bytes import ByteTable
from model.load import open_stream
from model.passes import windows_of
from model.protocol import from_dict
from stages.audit.account import Account
from stages.audit.config import Config
from stages.audit.cost import handed_out
from stages.audit.on_record import audit_run, audit_score, opened_files
from stages.audit.protocols import audit_protocols
from stages.audit.verdict import Examined, report, verdict_table, write_verdict
from stages.contract import Runtime, StageError, fresh_role
from stages.refusing import refusing


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `verdict/verdict.json`. A broken rule is a finding and no error."""
    if not config.protocols or not config.challenge:
        raise StageError("the audit is told protocols and rules by the wiring; got none; use `fairway run` or `audit`")
    with refusing():
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(inputs["tokenizer"] / "tokenizer.model"))
        stream = open_stream(inputs["val"], ByteTable.load(inputs["tokenizer"] / "bytes.npy").vocab)
        account = Account.read(inputs["records"] / "records.json")
        # Diagnostics are not audited, but they are part of what evaluation cost.
        every = [from_dict(values) for values in config.protocols.values()]
        evaluated = sum(handed_out(windows_of(protocol, len(stream))) for protocol in every)
    # From here on a ValueError is a fault of the audit's own, and ends it with a traceback.
    asked = audit_protocols(config, inputs, runtime)
    opened = opened_files(finding for of in asked.values() for finding in of.findings)
    findings = audit_run(inputs, stream, tokenizer, account, config.challenge, opened)
    scores: dict[str, Examined] = {}
    for name in sorted(asked):
        folders = inputs["scores"] / name, inputs["ledgers"] / name
        read = audit_score(folders, name, stream, tokenizer, account, config.challenge)
        of = asked[name]
        scores[name] = Examined([*of.findings, *read], of.forward_tokens, of.evaluate_tokens)
    table = verdict_table(findings, scores, config.challenge, evaluated)
    write_verdict(fresh_role(out, "verdict"), table)
    return report(table)
