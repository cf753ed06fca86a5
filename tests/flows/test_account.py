"""The account of a run: made of records alone, known when all of them are, and read back by the audit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toyriver import make_tree
from toyrun import request, run_toy, write_recipe

from artifacts.record import Record, digest_files
from flows.account import account_of
from flows.session import Outcome
from stages.audit.account import SCHEMA, Account
from stages.audit.identity import check_identity, check_lineage


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """A finished run of the toy river."""
    folder = tmp_path_factory.mktemp("account")
    write_recipe(folder)
    return run_toy(request(folder, make_tree(folder / "tree")))


def told(outcomes: list[Outcome], **changes: Record | None) -> Any:
    records: dict[tuple[str, str], Record | None] = {o.step.id: o.record for o in outcomes}
    records |= {(stage, ""): record for stage, record in changes.items()}
    return account_of(records.get)([o.step for o in outcomes if o.step.stage != "audit"])


def test_the_audit_was_told_what_the_records_say(outcomes: list[Outcome]) -> None:
    audit = next(o for o in outcomes if o.step.stage == "audit")
    given = told(outcomes)
    assert given.digest == audit.record.inputs["records"]["digest"] == digest_files(given.files)
    assert {each["stage"] for each in audit.record.inputs["records"]["from"]} == {o.step.stage for o in outcomes} - {
        "audit"
    }


def test_equal_records_give_equal_bytes_and_another_second_other_ones(outcomes: list[Outcome]) -> None:
    train = next(o.record for o in outcomes if o.step.stage == "train")
    slower = replace(train, provenance={**train.provenance, "seconds": 1e6})
    assert told(outcomes).written == told(outcomes).written
    assert told(outcomes, train=slower).digest != told(outcomes).digest
    elsewhere = replace(train, provenance={**train.provenance, "host": "another", "user": "somebody"})
    assert told(outcomes, train=elsewhere).written == told(outcomes).written


def test_it_is_not_known_while_a_record_is_missing(outcomes: list[Outcome]) -> None:
    given = told(outcomes, train=None)
    assert given.digest is None
    assert ("train", "", "raw") in given.origin


def test_the_audit_finds_its_keys_and_its_lineage_in_order(outcomes: list[Outcome], tmp_path: Path) -> None:
    assert SCHEMA == 1
    (tmp_path / "records.json").write_bytes(told(outcomes).written)
    account = Account.read(tmp_path / "records.json")
    finding = check_identity(account, {})
    assert finding.verdict == "pass", finding.says
    assert {f.verdict for f in check_lineage(account)} == {"pass"}
    assert {step.label for step in account.made_by("compress")} >= {"corpus", "train", "quantize"}
    assert set(account.evaluations()) == {"roundtrip", "sliding"}


def test_a_flow_that_writes_another_schema_than_the_audit_reads_is_noticed() -> None:
    import flows.account

    assert flows.account.SCHEMA == SCHEMA
