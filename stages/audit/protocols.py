"""Audits every protocol that scored the archive: its ledger's events, and its scorer in another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.load import load_bytes, open_stream
from model.passes import windows_of
from model.protocol import Protocol, chunk_targets, from_dict
from model.stream import TokenStream
from model.windows import Windows
from stages.audit.cost import Meter, budgets, exposed_targets, handed_out, trained_on, update_cost
from stages.audit.deep import ClosedFolder, audit_deeply
from stages.audit.detect import audit_events, audit_scorer
from stages.audit.finding import Finding
from stages.audit.records import LedgerFile
from stages.audit.remote import ScorerFailed, ScorerProcess, ship
from stages.audit.settings import Settings
from stages.contract import Runtime

if TYPE_CHECKING:
    from stages.audit.config import Config


QUICK_STATES = 3  # after learning, that a quick audit examines where its budget allows


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What was found of one protocol, and what that cost."""

    findings: list[Finding]
    forward_tokens: int  # that the audit sent forward, training included
    evaluate_tokens: int  # that evaluation handed out
    evaluate_trained_tokens: int  # that its adaptation sent forward, at most

    def to_dict(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "forward_tokens": self.forward_tokens,
            "evaluate_tokens": self.evaluate_tokens,
            "evaluate_trained_tokens": self.evaluate_trained_tokens,
        }


def audit_protocols(config: Config, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Audited]:
    """Every protocol `of` the archive, by name."""
    stream = open_stream(inputs["val"], load_bytes(inputs["tokenizer"]).vocab)
    read = {name: from_dict(values) for name, values in config.protocols.items()}
    known = {name: (protocol, windows_of(protocol, len(stream))) for name, protocol in read.items()}
    audited = [name for name, values in config.protocols.items() if values["of"] == "archive"]
    if not audited:
        return {}
    shares = budgets(known, set(audited), config.share)
    folder = ship(inputs, runtime.scratch / "shipped")
    deep = ClosedFolder.make(inputs, runtime) if config.deep else None
    found: dict[str, Audited] = {}
    with ScorerProcess(folder, runtime.scratch, runtime.device) as process:
        for done, name in enumerate(audited):
            runtime.report_progress(done, len(audited), "protocols")
            ledger = LedgerFile.read(inputs["ledgers"] / name)
            settings = _settings(config, runtime, known[name], ledger, shares[name])
            found[name] = _audit(process, config.protocols[name], known[name], stream, settings, ledger)
            if deep is not None:
                values, windows = config.protocols[name], known[name][1]
                found[name].findings.extend(audit_deeply(deep, name, values, windows, settings, ledger))
    return found


def _settings(
    config: Config, runtime: Runtime, of: tuple[Protocol, Windows], ledger: LedgerFile, budget_tokens: int
) -> Settings:
    protocol, windows = of
    chunk = chunk_targets(protocol)
    chunks = len(list(windows.spans(chunk))) if chunk else 0
    return Settings(
        lot=ledger.sha256,
        # A deep audit may cost what scoring did, and looks at every state.
        budget_tokens=handed_out(windows) + trained_on(protocol, windows) if config.deep else budget_tokens,
        chunks=chunks if config.deep else min(chunks, QUICK_STATES),
        cuts=config.cuts,
        update_tokens=update_cost(protocol, chunk),
        exposed_targets=exposed_targets(protocol, windows.targets),
        batch_windows=protocol.batch_windows,
        evaluate_ranks=config.evaluate_ranks,
        exact_replay=runtime.device.kind == "cpu",
        tolerance=0.0 if runtime.device.kind == "cpu" else 1e-3,
        tolerance_replay_nats=1e-3 if runtime.device.kind == "cpu" else 0.05,
    )


def _audit(
    process: ScorerProcess,
    values: Mapping[str, Any],
    of: tuple[Protocol, Windows],
    stream: TokenStream,
    settings: Settings,
    ledger: LedgerFile,
) -> Audited:
    protocol, windows = of
    meter = Meter()
    findings = audit_events(ledger.events, windows.targets)
    try:
        findings += audit_scorer(
            lambda: process.open(values), stream, windows, chunk_targets(protocol), settings, ledger, meter
        )
    except ScorerFailed as error:
        says = f"The replay did not run, so nothing is shown: {error}."
        findings += [Finding(rule=rule, detector="T0", verdict="unknown", says=says) for rule in ("C1", "C3", "E4")]
    return Audited(
        findings=findings,
        forward_tokens=meter.total,
        evaluate_tokens=handed_out(windows),
        evaluate_trained_tokens=trained_on(protocol, windows),
    )
