"""What Prefect's page shows of a run: a summary with its pictures, and small tables. Plain values; nothing of Prefect.

Pictures travel inside Markdown: Prefect's image artifact takes an address, which would need a public place, and shows a
whole data address as text below the picture. They lie in the server's database, so they are made small first.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.load import challenge
from flows import verdicts
from flows.headline import archive_scores, says
from flows.naming import changes
from flows.session import Outcome
from flows.tables import seconds_text

PICTURES = {"ladder": 900, "loss": 640, "sizes": 900}  # of the report: name -> width in pixels on the page
COLORS = 32
PICTURE_LIMIT = 48_000  # bytes of a PNG; the three together stay below 200 kB in the database


def title(result: Mapping[str, Any]) -> str:
    """What run this is about."""
    return f"{result['recipe']} · {result['scale']} · seed {result['seed']} · run {result['run']}"


def scores(result: Mapping[str, Any], document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per protocol, from raw weights to the last; what stands in no row is no column."""
    archived = archive_scores(document)
    rows: list[dict[str, Any]] = []
    before: float | None = None
    for name, score in result["scores"].items():
        broken = score.get("rules_broken", [])
        rows.append(
            {
                "score": name,
                "BPB": f"{score['bpb']:.5f}",
                "change": "" if before is None else f"{score['bpb'] - before:+.5f}",
                "verdict": verdicts.mark(result["audit"], name) if name in archived else "float weights",
                "breaks": " ".join(broken),
                "marks": ", ".join(score.get("marks", [])),
                "nats per token": f"{score['nats_per_token']:.4f}",
                "tokens": f"{score['tokens']:,}",
                "bytes": f"{score['bytes']:,}",
                "took": "" if score["seconds"] is None else seconds_text(score["seconds"]),
            }
        )
        before = score["bpb"]
    empty = {name for name in ("breaks", "marks", "verdict") if not any(row[name] for row in rows)}
    told = [{name: value for name, value in row.items() if name not in empty} for row in rows]
    return told or [{"score": "none yet"}]


def verdict(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each policy makes of the run, and why; then one row per rule."""
    audit = result["audit"]
    policies = [
        {"rule": f"policy {name}", "verdict": verdicts.WORDS[outcome], "what": "; ".join(_reasons(audit, name))}
        for name, outcome in audit.get("verdict", {}).items()
    ]
    return [*policies, *verdicts.rows(audit, challenge()["rules"])] or [{"rule": "none yet"}]


def _reasons(audit: Mapping[str, Any], policy: str) -> list[str]:
    """Each reason of a policy once, whatever number of scores it is about."""
    found = (reason.strip() for score in audit["scores"].values() for reason in score[policy]["because"])
    return list(dict.fromkeys(found))


def sizes(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is submitted, against the cap."""
    told = result["bytes"]
    if not told:
        return [{"part": "none yet"}]
    rows = [(name, told[name]) for name in ("model", "code", "total", "cap")]
    rows.append(("left", told["cap"] - told["total"]))
    return [{"part": name, "bytes": f"{n:,}", "of the cap": f"{100 * n / told['cap']:.2f} %"} for name, n in rows]


def lineage(result: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Every step with a link to the run that made its artifact: this one, or the one that a hit comes from."""
    rows = ["| step | | made by | artifact | key |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        made = outcome.record.provenance
        run = made.get("run", "")
        who = "this run" if run == result["run"] else f"run {run}" if run else "unknown"
        by = f"[{who}]({page(made['flow_run'])})" if made.get("flow_run") else who
        took = f"ran, {seconds_text(outcome.seconds)}" if outcome.state == "ran" else "cached"
        key = outcome.record.key[:12]
        rows.append(f"| {outcome.step.label} | {took} | {by} | {outcome.artifact} | {key} |")
    return "\n".join(rows)


def page(flow_run: str) -> str:
    """Where the server shows a run."""
    return f"/runs/flow-run/{flow_run}"


def summary(result: Mapping[str, Any], document: Mapping[str, Any], hours: str, pictures: Path) -> str:
    """The first thing to open: the score in a line, why it is not legal, ladder, curve and sizes as pictures."""
    ran = sum(1 for line in result["stages"] if line["state"] == "ran")
    lines: list[str] = []
    lines += [f"Changed: `{changed}`", ""] if (changed := changes(document.get("overrides", []))) else []
    lines += [f"**{headline}**", ""] if (headline := says({**document, **result})) else []
    lines += [f"- {line.strip()}" for line in verdicts.lines(result["audit"])]
    lines.append(f"- {ran} of {len(result['stages'])} steps ran, the rest came from the store")
    lines += [f"- {hours}"] if hours else []
    for name, width in PICTURES.items():
        path = pictures / f"{name}.png"
        if path.is_file() and (address := picture(path, width)):
            lines += ["", f"![{name}]({address})"]
    return "\n".join(lines)


def picture(path: Path, width: int) -> str:
    """A PNG as a data address, drawn small: `width` pixels wide and of few colours."""
    from PIL import Image  # matplotlib brings it

    with Image.open(path) as drawn:
        whole = drawn.convert("RGB")
    for shrink in (1.0, 0.75, 0.5):
        wide = min(whole.width, round(width * shrink))
        small = whole.resize((wide, max(1, whole.height * wide // whole.width)), Image.Resampling.LANCZOS)
        raw = io.BytesIO()
        small.quantize(COLORS, dither=Image.Dither.NONE).save(raw, "png", optimize=True)
        if raw.tell() <= PICTURE_LIMIT:
            return f"data:image/png;base64,{base64.b64encode(raw.getvalue()).decode()}"
    return ""


def set_says(result: Mapping[str, Any]) -> str:
    """A set of seeds in a line."""
    line = result["scores"].get(result["protocol"])
    spread = f" ± {line['std']:.5f}" if line and line["std"] else ""
    said = f"{line['mean']:.5f}{spread} BPB over {line['n']} seeds" if line else "no score yet"
    return f"{result['set']}: {result['protocol']} {said}"


def set_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The seeds of a set, one row each."""
    return [
        {
            "seed": line["seed"],
            "state": line["state"],
            "BPB": "" if line["bpb"] is None else f"{line['bpb']:.5f}",
            "bytes": "" if line["bytes"] is None else f"{line['bytes']:,}",
            "run": line["run"],
            "error": line["error"],
        }
        for line in result["runs"]
    ] or [{"seed": "none yet"}]


def point_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a sweep, one row each."""
    return [
        {
            "point": line["name"],
            "state": line["state"],
            "mean BPB": _number(line.get("mean")),
            "std": _number(line.get("std")),
            "seeds": line.get("n"),
        }
        for line in result["points"]
    ] or [{"point": "none yet"}]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
