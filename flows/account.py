"""The account of a run, `records.json`: what the audit is told about the other stages (`stages/audit/account.py`).

It is made of records alone, so that the same records give the same bytes, in a run, a plan or a rebuild; and it is an
input by content, so that the audit runs again when any of them changes, be it only by the seconds that a stage took.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from artifacts.record import File, Record, digest_files
from flows.identity import canonical_json
from flows.river import Account, Input, Step, StepId, not_known, told

SCHEMA = 1
NAME = "records.json"
TIMED = ("train", "evaluate")  # stages whose report has the seconds of a clock of their own


def account_of(record: Callable[[StepId], Record | None]) -> Account:
    """The account as the river asks for it; not known while a step has no record."""

    def account(steps: Sequence[Step]) -> Input:
        entries: list[dict[str, Any]] = []
        for step in steps:
            found = record(step.id)
            if found is None:
                return not_known(steps)
            entries.append(entry(step, found))
        text = canonical_json({"schema": SCHEMA, "steps": entries}).encode()
        files = (File(NAME, hashlib.sha256(text).hexdigest(), len(text)),)
        return Input(digest_files(files), files, told(steps), text)

    return account


def entry(step: Step, record: Record) -> dict[str, Any]:
    """One step: what its key was made of, what went in and came out, and how long it took."""
    return {
        "stage": step.stage,
        "part": step.part,
        "key": record.key,
        "components": record.components,
        "device": step.device.model_dump(mode="json") if step.device else None,
        "process_s": record.provenance.get("seconds", 0.0),
        "timer_s": record.report.get("seconds") if step.stage in TIMED else None,
        "source": record.provenance.get("source", ""),
        "inputs": {
            role: {
                "digest": given["digest"],
                "from": [[producer["stage"], producer.get("part", ""), producer["role"]] for producer in given["from"]],
            }
            for role, given in sorted(record.inputs.items())
        },
        "outputs": {role: record.role_digest(role) for role in step.config.SPEC.outputs},
    }
