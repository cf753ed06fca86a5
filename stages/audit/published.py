"""The verdict on a system by what was published of it, and by what its protocols declare: nothing is run.

Size and denominators are judged by published figures, C1 to C4 by the protocols, since the referee proves the rest by
construction. What only a run can show is left to the audit of that run and called not applicable here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.audit.denominators import Claim, check_claim_fully
from stages.audit.finding import Finding
from stages.audit.sizes import check_published_sizes

SIZES = "total_bytes"
DECIMALS = 8  # of losses and scores that stand in a recipe side by side
NATS, BPB = "nats_", "bpb_"  # a published list of losses stands beside the list of scores of the same name
RUN_SHOWS = {
    "B2": "the clock of training is judged by a run on the challenge's hardware",
    "B3": "the clock of scoring is judged by a run on the challenge's hardware",
    "E1": "coverage is counted in a run",
    "E4": "an archive is looked through when there is one",
    "D1": "lineage is that of a run",
    "D3": "lineage is that of a run",
    "D4": "overlap is measured between the shards of a run",
    "R1": "identity is that of a run's records",
}


def judge_published(
    published: Mapping[str, Any], protocols: Mapping[str, Mapping[str, Any]], challenge: Mapping[str, Any]
) -> list[Finding]:
    """Findings on a recipe.

    Args:
        published: the recipe's table of that name.
        protocols: name -> configuration of each protocol that scores the archive.
        challenge: `challenge.toml`.
    """
    findings = [_size(published, challenge), *_protocols(protocols), *_denominators(published, challenge)]
    findings += [
        Finding(rule=rule, detector="published", verdict="not_applicable", says=says)
        for rule, says in RUN_SHOWS.items()
        if not any(finding.rule == rule for finding in findings)
    ]
    return findings


def _size(published: Mapping[str, Any], challenge: Mapping[str, Any]) -> Finding:
    total = published.get(SIZES)
    if not total:
        says = "no archive of it was published; a run weighs its own"
        return Finding(rule="B1", detector="T14", verdict="not_applicable", says=says)
    return check_published_sizes(_list(total), challenge["cap_bytes"])


def _denominators(published: Mapping[str, Any], challenge: Mapping[str, Any]) -> list[Finding]:
    targets = published.get("targets", challenge["validation"]["sp1024"]["targets"])
    findings: list[Finding] = []
    for name in published:
        of = name.removeprefix(NATS)
        if name.startswith(NATS) and BPB + of in published:
            for nats, bpb in zip(_list(published[name]), _list(published[BPB + of]), strict=True):
                claim = Claim(f"{of} {bpb:.8f}", nats, bpb, DECIMALS, DECIMALS)
                findings += check_claim_fully(claim, targets, challenge["fingerprint"])
    return findings or [
        Finding(rule="E2", detector="T11", verdict="not_applicable", says="no loss stands beside a published score")
    ]


def _list(value: Any) -> list[Any]:
    """One figure per seed; a system of one run may have it alone."""
    return value if isinstance(value, list) else [value]


def _protocols(protocols: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """C1 to C4 as the protocols declare them; the worst of them speaks for the system."""
    breaks: dict[str, list[str]] = {"C1": [], "C2": [], "C3": [], "C4": []}
    for name, protocol in protocols.items():
        if protocol.get("protocol") == "pre_eval":
            for rule in ("C1", "C3", "C4"):
                breaks[rule].append(f"{name} adapts on the whole validation set before it scores it")
        if protocol.get("mixer", {}).get("kind") == "published_ngram":
            breaks["C2"].append(f"{name} reads a hashed ratio at the target only, which sums to hundreds")
    findings = [
        Finding(
            rule=rule,
            detector="protocol",
            verdict="fail" if why else "pass",
            says="; ".join(why) or f"{', '.join(protocols) or 'nothing'}: held by the referee",
            evidence={"protocols": sorted(protocols)},
        )
        for rule, why in breaks.items()
    ]
    tails = [name for name, protocol in protocols.items() if protocol.get("tail_rescore")]
    if tails:
        says = f"{', '.join(tails)}: the last windows score their targets again, as published"
        evidence = {"kind": "tail_rescored", "protocols": tails}
        findings.append(Finding(rule="C4", detector="protocol", verdict="fail", says=says, evidence=evidence))
    return findings
