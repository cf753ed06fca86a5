"""Checks of what the logs measured: clocks, denominators, train shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from flows.challenge.backing import backing_runs, claimed_score
from flows.challenge.findings import Finding, Level, gathered
from flows.challenge.folder import Evidence, Folder
from flows.challenge.log import Score, decimals
from stages.audit.denominators import divided_by

Rules = Mapping[str, Any]
_NEAR = 2e-5  # relative: a tail that is cut or counted another way moves the bytes by less
_OFF = 1e-3  # another count of the same text
_ANOTHER = 0.5  # known faults count a third more or less; what is further off is another text


def check_clocks(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """Training and evaluation within their seconds (detector T15). Non-record submissions may take longer."""
    if folder.record:
        yield from gathered(_check_clocks(folder, rules))


def _check_clocks(folder: Folder, rules: Rules) -> Iterator[Finding]:
    for each in backing_runs(folder):
        yield from _check_training(each, rules)
        seconds = each.run.eval_s or _seconds(each, claimed_score(folder, each))
        if seconds is not None and seconds > rules["evaluate_seconds"]:
            text = f"{each.log.name}: evaluation took {seconds:.1f} s of {rules['evaluate_seconds']}"
            yield Finding("error", "B3", "I35", text)


def _seconds(each: Evidence, score: Score | None) -> float | None:
    """How long a score took: the line with all its digits may leave that to the rounded line before it."""
    took = [other.seconds for other in each.run.final_scores if score and _says(other, score)]
    took.append(each.run.eval_times_s.get(score.name) if score else None)
    return max((seconds for seconds in took if seconds is not None), default=None)


def _says(other: Score, score: Score) -> bool:
    return abs(other.val_bpb - score.val_bpb) <= Decimal(1).scaleb(-min(other.decimals, score.decimals))


def _check_training(each: Evidence, rules: Rules) -> Iterator[Finding]:
    limit, run = rules["train_seconds"], each.run
    if run.train_s is None:
        return
    late = run.train_s - limit
    after = sum(run.after_train_s.values())
    if late > 0:
        level: Level = "note" if late <= rules["submission"]["step_overrun_seconds"] else "error"
        what = "the stop is tested after a step" if level == "note" else "more than the last step explains"
        yield Finding(
            level, "B2", "I34", f"{each.log.name}: training stopped at {run.train_s:.3f} s of {limit} ({what})"
        )
    if after and run.train_s + after > limit:
        text = f"training {run.train_s:.1f} s, then calibration on train data {after:.1f} s: together over {limit} s"
        yield Finding("strict", "B2", "I34", f"{each.log.name}: {text}")
    if run.production_s is not None and run.production_s > limit:
        text = (
            f"{each.log.name}: the artifact was closed after {run.production_s:.1f} s of process time, {limit} allowed"
        )
        yield Finding("strict", "B2", "I34", text)


def check_denominators(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """The bytes that each score was divided by, against what is known of the validation set (detector T11)."""
    told: set[tuple[str, str]] = set()
    rows = fingerprints(folder, rules)
    for row in rows:
        if row["level"] is None or (row["level"], row["what"]) in told:
            continue
        told.add((row["level"], row["what"]))
        same = [other["log"] for other in rows if (other["level"], other["what"]) == (row["level"], row["what"])]
        logs = f"{row['log']}{f' and {len(set(same)) - 1} more' if len(set(same)) > 1 else ''}"
        text = (
            f"{logs}, “{row['label']}”: divided by {row['bytes']:,} bytes for {row['targets']:,} targets: {row['what']}"
        )
        yield Finding(row["level"], "E2", row["class"], text, {"bytes": row["bytes"], "targets": row["targets"]})
    if not rows and any(each.run.final_scores for each in folder.evidence):
        text = "no log has both a score with enough digits and the number of its targets: the denominator is unproven"
        yield Finding("note", "E2", "", text)


def fingerprints(folder: Folder, rules: Rules) -> list[dict[str, Any]]:
    """One row per claimed score (or, where none is claimed, final score) whose denominator can be told."""
    rows: list[dict[str, Any]] = []
    for each in backing_runs(folder):
        score = _most_digits(each, claimed_score(folder, each))
        told = each.run.targets.get(score.name) if score else None
        tokens = told[0] if told else each.run.val_tokens
        if tokens is None or score is None or score.decimals < 3:
            continue
        implied = divided_by(float(score.val_loss), float(score.val_bpb), tokens)
        level, kind, what = judge(implied, tokens, _tolerance(score, implied), rules["fingerprint"])
        rows.append(
            {
                "log": each.log.name,
                "label": score.label,
                "bytes": round(implied),
                "targets": tokens,
                "level": level,
                "class": kind,
                "what": what,
            }
        )
    return rows


def judge(implied: float, tokens: int, tolerance: float, table: list[dict[str, Any]]) -> tuple[Level | None, str, str]:
    """(level, class, what it is) of an implied count; level None where it is the sound one."""
    rows = [row for row in table if row["targets"] == tokens]
    hits = [row for row in rows if abs(implied - row["bytes"]) <= tolerance]
    sound = [row for row in hits if row["sound"]]
    if sound:
        return None, "", sound[0]["name"]
    if hits:
        tail = hits[0]["class"] == "I26"
        return ("note" if tail else "error"), hits[0]["class"], hits[0]["name"]
    # Whatever the vocabulary, the validation text is the same: about as many bytes.
    known = [row for row in rows if row["sound"]] or [row for row in table if row["sound"]]
    nearest = min(known, key=lambda row: abs(implied - row["bytes"]))
    off = implied / nearest["bytes"] - 1
    if abs(off) <= _NEAR:
        level, kind, note = "note", "I26", "as if the tail were cut or counted another way"
    elif abs(off) <= _OFF:
        level, kind, note = ("strict" if rows else "note"), "", "another count of the same text"
    elif abs(off) <= _ANOTHER:
        level, kind, note = "error", "I20-I25", "bytes counted wrongly"
    else:
        return "error", "I25", "not the published validation set, or not all of it"
    return level, kind, f"{implied - nearest['bytes']:+,.0f} bytes from “{nearest['name']}” ({off:+.4%}): {note}"


def _tolerance(score: Score, implied: float) -> float:
    """How far rounding of both numbers can move the bytes, and two bytes for the sums' own rounding."""
    relative = sum(float(Decimal("0.5").scaleb(-decimals(value)) / value) for value in (score.val_loss, score.val_bpb))
    return 2 + relative * implied


def _most_digits(each: Evidence, score: Score | None) -> Score | None:
    """The line that says a score with the most digits."""
    if score is None:
        return None
    again = [other for other in each.run.final_scores if _says(other, score)]
    return max(again, key=lambda other: other.decimals, default=score)


def check_data(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """The train shards are not those that are known to hold validation documents."""
    leaked = rules["submission"]["leaked_train_shards"]
    for each in backing_runs(folder):
        if each.run.train_shards == leaked:
            text = f"{each.log.name}: {leaked} train shards are those of an export that trains on validation documents"
            yield Finding("error", "D4", "I29", text)
