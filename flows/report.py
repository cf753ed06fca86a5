"""The report: one self-contained HTML page (and its pictures as PNG) made from a run's document and its records alone.

It reads the store and writes a folder; it computes no score. What a stage did not leave behind is left out of the page.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

import flows.charts as charts
from artifacts.record import Record
from artifacts.store import Store
from flows import verdicts
from flows.leaves import leaves
from flows.rundoc import label_of

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHADE_CEILING_BITS = 12.0  # a token this expensive or more gets the full shade
SHADE_MAX = 0.62
SAMPLES = 4
WHAT_IS_SCORED = {"raw": "raw float weights", "averaged": "averaged float weights", "archive": "archive"}


def write_report(store: Store, run: Mapping[str, Any], folder: Path) -> Path:
    """Write index.html and the PNGs of a run's document into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    records = {
        (step["stage"], step.get("part", "")): record
        for step in run["steps"]
        if step.get("key") and (record := store.get(step["stage"], step["key"]))
    }
    pictures = _pictures(store, records)
    for name, figure in pictures.items():
        charts.png(figure, folder / f"{name}.png")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    view = _view(store, run, records, pictures)
    path = folder / "index.html"
    path.write_text(page.render(**view), encoding="utf-8")
    return path


Records = Mapping[tuple[str, str], Record]


def _view(store: Store, run: Mapping[str, Any], records: Records, pictures: Mapping[str, Figure]) -> dict[str, Any]:
    rungs = _ladder(store, records)
    train = _report(records, "train")
    sizes = _report(records, "weigh")
    protocol, samples = _samples(store, records)
    from_markup = Environment(autoescape=True).filters["safe"]
    recipe = run.get("resolved", {})
    rows = list(_configuration(recipe, run.get("origins", {})))
    chosen, defaults = ([row for row in rows if (row["origin"] == "default") is default] for default in (False, True))
    return {
        "run": run,
        "about": recipe.get("about", ""),
        "made": run.get("finished") or run["started"],
        "headline": _headline(rungs),
        "marks": _marks(rungs, sizes, _report(records, "audit")),
        "audit": _audit(store, records),
        "facts": _facts(train, sizes, rungs, run),
        "ladder": rungs,
        "charts": {
            name: from_markup(charts.svg(pictures[name])) if name in pictures else ""
            for name in ("ladder", "loss", "sizes", "position", "quantisation")
        },
        "training_note": _training_note(train),
        "quantisation_note": _quantisation_note(rungs),
        "samples": samples,
        "samples_protocol": protocol,
        "samples_ceiling": SHADE_CEILING_BITS,
        "stages": [_stage_row(step, records.get((step["stage"], step.get("part", "")))) for step in run["steps"]],
        "configuration": chosen,
        "defaults": defaults,
        "provenance": _provenance(records),
    }


def _pictures(store: Store, records: Records) -> dict[str, Figure]:
    pictures: dict[str, Figure] = {}
    rungs = _ladder(store, records)
    if rungs:
        pictures["ladder"] = charts.ladder([(rung["name"], rung["bpb"]) for rung in rungs])
    curve = _read(store, records.get(("train", "")), "curve/curve.jsonl")
    if curve:
        pictures["loss"] = charts.loss_curve([json.loads(line) for line in curve.splitlines()])
    sizes = _json(store, records.get(("weigh", "")), "sizes/sizes.json")
    if sizes:
        parts = [(row["part"], row["bytes"]) for row in sizes["parts"]]
        pictures["sizes"] = charts.sizes(parts, sizes["cap_bytes"])
    by_position = {
        rung["name"]: _buckets(points)
        for rung in rungs
        if rung["of"] == "archive" and (points := _json(store, records.get(("evaluate", rung["name"])), _POSITIONS))
    }
    if by_position:
        pictures["position"] = charts.by_position(by_position)
    errors = _json(store, records.get(("quantize", "")), "errors/errors.json")
    coded = [(row["name"], row["relative_rmse"]) for row in (errors or []) if row["bits"] < 16]
    if coded:
        pictures["quantisation"] = charts.quantisation(coded)
    return pictures


_POSITIONS = "ledger/positions.json"


def _ladder(store: Store, records: Records) -> list[dict[str, Any]]:
    """One row per protocol, scores as the evaluation wrote them."""
    rungs: list[dict[str, Any]] = []
    for (stage, part), record in records.items():
        if stage == "evaluate" and (score := _json(store, record, "score/score.json")):
            what = WHAT_IS_SCORED[score["of"]]
            how = score["protocol"]
            if how != "roundtrip":
                how = f"{how}, stride {score['stride_tokens']} of {score['context_tokens']}"
            if score["rules_broken"]:
                how += ", breaks " + ", ".join(sorted({broken["rule"] for broken in score["rules_broken"]}))
            seconds = record.provenance.get("seconds")
            rungs.append({"name": part, "what": f"{what}, {how}", "seconds": seconds, **score})
    return sorted(rungs, key=_rung_order)


def _rung_order(rung: Mapping[str, Any]) -> tuple[int, int, int, str]:
    """From raw weights to the score; what breaks a rule comes last. Unknown protocols follow the known ones."""
    protocols = ("roundtrip", "sliding", "ttt")
    known = protocols.index(rung["protocol"]) if rung["protocol"] in protocols else len(protocols)
    return (list(WHAT_IS_SCORED).index(rung["of"]), len(rung["rules_broken"]), known, rung["name"])


def _headline(rungs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    last = _headline_rung(rungs)
    if last is None:
        return {"bpb": "n/a", "meaning": "no protocol has scored the archive"}
    return {
        "bpb": f"{last['bpb']:.4f}",
        "meaning": f"protocol “{last['name']}” on {last['tokens']:,} validation tokens",
    }


def _headline_rung(rungs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last rung of the archive that breaks no rule; one that does only where there is no other."""
    archive = [rung for rung in rungs if rung["of"] == "archive"]
    return next((rung for rung in reversed(archive) if not rung["rules_broken"]), archive[-1] if archive else None)


def _marks(rungs: Sequence[Mapping[str, Any]], sizes: Mapping[str, Any], audit: Mapping[str, Any]) -> list[str]:
    """Everything that a reader must know before believing or comparing the headline."""
    found = ["over the size cap"] if sizes.get("oversize") else []
    rung = _headline_rung(rungs)
    if rung:
        found += [mark.replace("_", " ") for mark in rung["marks"]]
        found += [f"breaks rule {broken['rule']}" for broken in rung["rules_broken"]]
        if not verdicts.is_legal(audit, rung["name"]):
            found.append(verdicts.mark(audit, rung["name"]) or "not audited")
    return found


def _audit(store: Store, records: Records) -> dict[str, Any]:
    """The audit's section: policies side by side, rules in sentences, every finding, and what it cost."""
    table = _json(store, records.get(("audit", "")), "verdict/verdict.json")
    if not table:
        return {}
    record = records["audit", ""]
    challenge = record.components.get("config", {}).get("challenge", {})
    return {
        "policies": [
            {"name": name, "about": challenge.get("policies", {}).get(name, {}).get("about", ""), "run": outcome,
             "word": verdicts.WORDS[outcome],
             "scores": {part: verdicts.WORDS[score["verdict"][name]] for part, score in table["scores"].items()}}
            for name, outcome in table["verdict"].items()
        ],
        "scores": list(table["scores"]),
        "rules": verdicts.rows(table, challenge.get("rules", {})),
        "findings": verdicts.findings(table),
        "rulings": table["rulings"],
        "cost": verdicts.cost(table),
    }  # fmt: skip


def _facts(
    train: Mapping[str, Any],
    sizes: Mapping[str, Any],
    rungs: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if train:
        facts += [
            ("parameters", f"{train['params']:,}"),
            ("training tokens", f"{train['tokens']:,}"),
            ("training time", _duration(train["seconds"])),
            ("trained on", str(train["device"])),
        ]
    if sizes:
        facts += [
            ("size", f"{sizes['total_bytes']:,} bytes"),
            ("of the cap", f"{sizes['total_bytes'] / sizes['cap_bytes']:.2%}"),
        ]
    if rungs:
        facts.append(("validation", f"{rungs[-1]['tokens']:,} tokens"))
    spent = sum(step.get("seconds") or 0.0 for step in run["steps"] if step.get("state") == "ran")
    ran = sum(step.get("state") == "ran" for step in run["steps"])
    facts.append(("this run", f"{ran} of {len(run['steps'])} steps ran, {_duration(spent)} of work"))
    return facts


def _training_note(train: Mapping[str, Any]) -> str:
    if not train:
        return ""
    return (
        f"{train['steps']:,} steps, {train['tokens_per_s']:,.0f} tokens/s, {train['epochs']:.2f} passes over the data; "
        f"ended by {train['ended_by']}. The held-out tail of the last train shard is never trained on."
    )


def _quantisation_note(rungs: Sequence[Mapping[str, Any]]) -> str:
    by_name = {rung["name"]: rung["bpb"] for rung in rungs}
    if "averaged" in by_name and "roundtrip" in by_name:
        return f"Quantisation costs {by_name['roundtrip'] - by_name['averaged']:+.4f} BPB (round trip less averaged)."
    return "Root-mean-square error of each tensor, relative to its weights."


def _samples(store: Store, records: Records) -> tuple[str, list[dict[str, Any]]]:
    """Documents with the cost of each token, under the last protocol that scored the archive."""
    scored = [rung["name"] for rung in _ladder(store, records) if rung["of"] == "archive"]
    if not scored:
        return "", []
    documents = _json(store, records.get(("evaluate", scored[-1])), "ledger/documents.json") or []
    samples = [
        {
            "document": document["document"],
            "bpb": sum(document["nats"]) / math.log(2) / max(sum(document["bytes"]), 1),
            "tokens": [
                {"text": text, "bits": f"{nats / math.log(2):.2f}", "shade": f"{_shade(nats / math.log(2)):.3f}"}
                for text, nats in zip(_texts(document["pieces"]), document["nats"], strict=True)
            ],
        }
        for document in documents[:SAMPLES]
    ]
    return scored[-1], samples


def _shade(bits: float) -> float:
    return SHADE_MAX * min(bits / SHADE_CEILING_BITS, 1.0)


def _texts(pieces: Sequence[str]) -> list[str]:
    """What each token shows: its text, or the byte that it stands for when the bytes make no character alone."""
    return [piece.replace("▁", " ") for piece in pieces]


def _buckets(points: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Positions gathered by octave quarters: single positions are noisy, and there are thousands."""
    sums: dict[int, list[float]] = {}
    for point in points:
        place = point["position"]
        bucket = place if place < 8 else 8 + int(4 * math.log2(place / 8))
        total = sums.setdefault(bucket, [0.0, 0.0, 0.0])
        for i, value in enumerate((place * point["targets"], point["nats"], point["targets"])):
            total[i] += value
    return [(weighted / targets, nats / targets) for weighted, nats, targets in sums.values()]


def _stage_row(step: Mapping[str, Any], record: Record | None) -> dict[str, Any]:
    return {
        "label": label_of(step),
        "state": step.get("state", ""),
        "seconds": record.provenance.get("seconds") if record else step.get("seconds"),
        "artifact": step.get("artifact"),
        "key": step.get("key") or "",
        "reads": ", ".join(_reads(record)) if record else "",
        "digest": _short_digest(record) if record else "",
    }


def _reads(record: Record) -> Iterable[str]:
    for role, given in sorted(record.inputs.items()):
        producers = given.get("from", [])
        if len(producers) > 3:
            yield f"{role} ← {producers[0]['stage']} x {len(producers)}"
        elif producers:
            keys = ", ".join(f"{producer['stage']} {producer['key'][:6]}" for producer in producers)
            yield f"{role} ← {keys}"
        else:
            yield f"{role} ← outside {str(given.get('digest'))[:6]}"


def _short_digest(record: Record) -> str:
    roles = sorted({file.path.partition("/")[0] for file in record.files})
    return " ".join(f"{role}:{record.role_digest(role)[:6]}" for role in roles)


def _configuration(recipe: Mapping[str, Any], origins: Mapping[str, str]) -> Iterable[dict[str, str]]:
    for path, value in sorted(leaves(recipe).items()):
        if path.split(".")[0] not in ("published", "about"):
            yield {"path": path, "value": json.dumps(value), "origin": origins.get(path, "default")}


def _provenance(records: Records) -> str:
    """Where the most telling record was made: training, or whatever there is."""
    record = records.get(("train", "")) or next(iter(records.values()), None)
    if record is None:
        return ""
    shown = {name: value for name, value in record.provenance.items() if name != "packages"}
    packages = record.provenance.get("packages", {})
    telling = {n: v for n, v in packages.items() if n in ("torch", "numpy", "prefect", "sentencepiece", "zstandard")}
    text = json.dumps({"stage": record.stage, **shown, "packages": telling}, indent=2, ensure_ascii=False)
    return "\n".join(textwrap.fill(line, 140, subsequent_indent="    ") for line in text.splitlines())


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _report(records: Records, stage: str) -> Mapping[str, Any]:
    record = records.get((stage, ""))
    return record.report if record else {}


def _json(store: Store, record: Record | None, path: str) -> Any:
    text = _read(store, record, path)
    return json.loads(text) if text else None


def _read(store: Store, record: Record | None, path: str) -> str:
    """The text of one file of a record, or nothing."""
    for file in record.files if record else ():
        if file.path == path:
            return store.read_object(file.sha256).decode("utf-8")
    return ""
