"""What Prefect's UI shows of a run: small tables, and the loss curve as a picture inside markdown."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from artifacts.store import Store
from configs.load import challenge
from flows import verdicts
from flows.session import Outcome


def title(result: Mapping[str, Any]) -> str:
    """What run this is about."""
    return f"{result['recipe']} · {result['scale']} · seed {result['seed']} · run {result['run']}"


def scores(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per protocol."""
    return [{"score": name, **score} for name, score in result["scores"].items()] or [{"score": "none yet"}]


def verdict(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per rule, below what each policy makes of them all."""
    audit = result["audit"]
    policies = [
        {"rule": f"policy {name}", "verdict": outcome, "what": ""} for name, outcome in audit.get("verdict", {}).items()
    ]
    return [*policies, *verdicts.rows(audit, challenge()["rules"])] or [{"rule": "none yet"}]


def sizes(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per part of what is submitted."""
    return [{"part": name, "bytes": count} for name, count in result["bytes"].items()] or [{"part": "none yet"}]


def lineage(result: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Every step with the run that made its artifact; a stage that a pool ran has a page of its own."""
    rows = ["| step | state | artifact | key | made by run | |", "|---|---|---|---|---|---|"]
    for outcome in outcomes:
        made = outcome.record.provenance
        page = f"[its page](/runs/flow-run/{made['flow_run']})" if made.get("flow_run") else ""
        key = outcome.record.key[:12]
        rows.append(
            f"| {outcome.step.label} | {outcome.state} | {outcome.artifact} | {key} | {made.get('run', '')} | {page} |"
        )
    return f"{title(result)}\n\n" + "\n".join(rows)


def curve(store: Store, outcomes: Sequence[Outcome]) -> str:
    """The training's loss curve as markdown with the picture inside: Prefect's image artifact takes addresses only."""
    from flows import charts  # draws with matplotlib, half a second to import

    record = next(o.record for o in outcomes if o.step.stage == "train")
    text = b"".join(store.read_object(file.sha256) for file in record.role("curve"))
    points = [json.loads(line) for line in text.splitlines()]
    png = io.BytesIO()
    charts.loss_curve(points).savefig(png, format="png", dpi=80)
    return f"![loss curve](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})"
