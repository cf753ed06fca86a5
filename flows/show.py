"""What a run looks like as plain text: a line per event, and its result at the end. For bars see `live.py`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from flows import launch, verdicts
from flows.session import Event, Outcome
from flows.tables import Table, seconds_text

PLAIN_EVERY_S = 30.0  # in a log, one line of a long stage per this


class PlainRun:
    """One line per event, and a line of progress now and then."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._told: dict[str, float] = {}

    def __enter__(self) -> PlainRun:
        return self

    def __exit__(self, *ended: object) -> None:
        self._out.flush()

    def __call__(self, event: Event) -> None:
        """Show one event; a stage's output is in its log."""
        if event.kind == "said":
            return
        if event.kind == "start":
            self._told[event.label] = time.monotonic()
        if event.kind == "progress":
            now = time.monotonic()
            if not (event.progress or event.text) or now - self._told.get(event.label, 0.0) < PLAIN_EVERY_S:
                return
            self._told[event.label] = now
        self._out.write(f"{event.label:<22} {describe(event)}\n")
        self._out.flush()


def viewer() -> Any:
    """Who shows a run's progress on stderr: bars in a terminal, else lines. stdout is the result and nothing else."""
    if not sys.stderr.isatty():
        return PlainRun(sys.stderr)
    from rich.console import Console  # only a terminal pays for the import

    from flows.live import LiveRun

    return LiveRun(Console(stderr=True))


def describe(event: Event) -> str:
    """What an event says, without its label."""
    if event.kind == "done" and event.outcome is not None:
        return _done(event.outcome)
    if event.kind == "progress" and event.progress is not None:
        return progress_text(event.progress)
    return {"start": "runs", "failed": f"failed: {event.text}"}.get(event.kind, event.text)


def _done(outcome: Outcome) -> str:
    took = f"ran in {seconds_text(outcome.seconds)}" if outcome.state == "ran" else "cached"
    note = f"  ({outcome.note})" if outcome.note else ""
    return f"{took:<14} {outcome.artifact}{note}"


def progress_text(progress: launch.Progress) -> str:
    """`420/1000 steps  12.3 steps/s  0:47 left  loss 3.21`."""
    p = progress
    says = [f"{p.done:,.0f}/{p.total:,.0f} {p.unit}"]
    if p.rate is not None:
        says.append(f"{_rate(p.rate)} {p.unit}/s")
    if p.eta_s is not None:
        says.append(f"{seconds_text(p.eta_s)} left")
    says += [_metric(name, value) for name, value in p.metrics.items()]
    return "  ".join(says)


def _metric(name: str, value: float | str) -> str:
    if name.endswith("_per_s") and isinstance(value, (int, float)):
        return f"{_rate(value)} {name.removesuffix('_per_s')}/s"
    return f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _caveats(score: Mapping[str, Any]) -> str:
    """What a reader must know before comparing a score: its marks, and the rules that it breaks."""
    broken = score.get("rules_broken", [])
    return ", ".join([*score.get("marks", []), *([f"breaks {' '.join(broken)}"] if broken else [])])


def score_table(result: Mapping[str, Any]) -> Table:
    """The scores; columns that nothing stands in are left out."""
    headings = ["score", "BPB", "nats/token", "tokens", "bytes", "took", "verdict", "marks"]
    rows = [
        [name, f"{s['bpb']:.4f}", f"{s['nats_per_token']:.4f}", f"{s['tokens']:,}", f"{s['bytes']:,}",
         seconds_text(s["seconds"]) if s["seconds"] is not None else "", verdicts.mark(result["audit"], name),
         _caveats(s)]
        for name, s in result["scores"].items()
    ]  # fmt: skip
    kept = [i for i in range(len(headings)) if i < 6 or any(row[i] for row in rows)]
    title = f"{result['recipe']} · {result['scale']} · seed {result['seed']}"
    shown = [[row[i] for i in kept] for row in rows]
    return Table(title, [headings[i] for i in kept], shown, "BPB nats/token tokens bytes took")


def print_result(result: Mapping[str, Any]) -> None:
    """Scores, sizes and where the report is."""
    score_table(result).print()
    if sizes := result["bytes"]:
        share = 100 * sizes["total"] / sizes["cap"]
        sys.stdout.write(
            f"{sizes['total']:,} bytes (code {sizes['code']:,} + model {sizes['model']:,}), "
            f"{share:.1f} % of the cap of {sizes['cap']:,}\n"
        )
    for line in verdicts.lines(result["audit"]):
        sys.stdout.write(f"{line}\n")
    ran = sum(1 for line in result["stages"] if line["state"] == "ran")
    sys.stdout.write(f"{ran} of {len(result['stages'])} steps ran, the rest came from the store; run {result['run']}\n")
    if result["report"]:
        sys.stdout.write(f"report: {result['report']}\n")
