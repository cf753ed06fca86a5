"""Checks of the claims: seeds, values against logs, and the statistics recomputed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from flows.challenge.backing import Backed, backed, by_label, claimed_score, declared_totals
from flows.challenge.claims import Claims, Entry, same
from flows.challenge.findings import Finding
from flows.challenge.folder import Folder

Rules = Mapping[str, Any]


def check_seeds(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """Every declared seed has a log of its own, every run is declared, and there are enough of them."""
    claims = folder.claims
    if claims is None:
        return
    logged = {each.seed for each in folder.evidence if each.seed is not None}
    if missing := [seed for seed in claims.seeds if seed not in logged]:
        yield Finding("error", "S4", "I41", f"no log of seed {', '.join(missing)}, which submission.json names")
    yield from _copies(claims.entries)
    for each in folder.evidence:
        if each.run.seed is not None and each.seed not in (None, str(each.run.seed)):
            text = f"{each.log.name} is named after seed {each.seed}; what it holds ran with seed {each.run.seed}"
            yield Finding("strict", "S4", "I41", text)
    entries = {entry.seed for entry in claims.entries}
    if unreported := sorted(logged - entries) if entries else []:
        text = f"logs of seed {', '.join(unreported)} are here, which submission.json does not report"
        yield Finding("strict", "B4", "I37", text)
    if claims.disclosed:
        values = [float(each.bpb) for each in backed(folder) if each.bpb is not None]
        all_runs = [*values, *map(float, claims.disclosed.values())]
        yield Finding(
            "strict",
            "B4",
            "I37",
            f"{len(claims.disclosed)} of {len(all_runs)} runs are left out of the results (seed "
            f"{', '.join(claims.disclosed)}): mean {_mean(values):.6f} as reported, {_mean(all_runs):.6f} over all",
        )
    known = len(entries or logged)
    if folder.record and known < rules["submission"]["seeds"]:
        text = f"a row needs {rules['submission']['seeds']} seeds of one configuration; here are {known}"
        yield Finding("strict", "B4", "I38", text)


def _copies(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Two seeds never end with the same step and the same bytes, nor with the same score."""
    for a, b in itertools.combinations(entries, 2):
        names = [name for name in a.fields if name in b.fields and a.fields[name] == b.fields[name]]
        scores = [name for name in names if name == "val_bpb" and (v := a.number(name)) is not None and _exact(v)]
        if (
            a.artifact_bytes == b.artifact_bytes and a.steps == b.steps and None not in (a.artifact_bytes, a.steps)
        ) or (scores):
            text = f"seeds {a.seed} and {b.seed} have equal {', '.join(names)}: one entry is a copy"
            yield Finding("error", "S4", "I41", text)


def _exact(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and exponent <= -6


def check_values(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """What submission.json says is what the logs say."""
    del rules
    claims = folder.claims
    if claims is None or not folder.evidence:
        return
    for each in backed(folder):
        yield from _check_entry(each)
    yield from _check_headline(folder, claims)
    yield from _check_bytes(folder, claims)


def _check_entry(each: Backed) -> Iterator[Finding]:
    if not each.runs:
        return
    where = f"seed {each.entry.seed}"
    logs = ", ".join(dict.fromkeys(run.log.name for run in each.runs))
    if each.bpb is not None and each.score is None:
        scores = [score.val_bpb for run in each.runs for score in run.run.scores]
        nearest = f"the nearest is {min(scores, key=lambda v: abs(v - each.bpb))}" if scores else "none is there"  # type: ignore[operator]
        yield _differs(f"{where}: val_bpb {each.bpb} is no score of {logs}; {nearest}")
    loss = each.entry.number("val_loss")
    if loss is not None and each.score is not None and not same(loss, each.score.val_loss):
        yield _differs(f"{where}: val_loss {loss} is not {each.score.val_loss}, the loss of its score in {logs}")
    for name, declared, said in (
        ("artifact_bytes", each.entry.artifact_bytes, [run.run.counted_total_bytes for run in each.runs]),
        ("steps", each.entry.steps, [run.run.steps for run in each.runs]),
    ):
        known = [value for value in said if value is not None]
        if declared is not None and known and declared not in known:
            yield _differs(f"{where}: {name} {declared:,} is not {' or '.join(f'{v:,}' for v in known)} of {logs}")


def _check_headline(folder: Folder, claims: Claims) -> Iterator[Finding]:
    scores = [score for each in folder.evidence for score in each.run.scores]
    loss, bpb = claims.number("val_loss"), claims.val_bpb
    if loss is not None and scores and not any(same(loss, score.val_loss) for score in scores):
        averages = _averages(folder, "val_loss")
        if any(same(loss, score.val_bpb) for score in scores) or any(
            same(loss, v) for v in _averages(folder, "val_bpb")
        ):
            text = f"val_loss is in nats per token; {loss} is a BPB of the logs"
            yield Finding("error", "S4", "I40", text)
        elif not any(same(loss, value) for value in averages):
            yield _differs(f"val_loss {loss} is no loss of the logs, nor a mean of theirs")
    if bpb is None or claims.entries or not scores or any(same(bpb, score.val_bpb) for score in scores):
        return
    if not any(same(bpb, value) for value in _averages(folder, "val_bpb")):
        yield _differs(f"val_bpb {bpb} is no score of the logs, nor a mean of theirs")


def _averages(folder: Folder, name: str) -> list[float]:
    """The mean over the logs' seeds, by label; and that of the claimed scores."""
    table: dict[str, dict[Any, Decimal]] = {}
    for each in folder.evidence:
        for score in each.run.final_scores:
            table.setdefault(score.label, {})[each.seed] = getattr(score, name)
    claimed = [getattr(each.score, name) for each in backed(folder) if each.score]
    columns = [list(values.values()) for values in table.values()] + [claimed]
    return [_mean([float(value) for value in column]) for column in columns if len(column) > 1]


def _check_bytes(folder: Folder, claims: Claims) -> Iterator[Finding]:
    totals = sorted({t for each in folder.evidence if (t := each.run.counted_total_bytes) is not None})
    declared = claims.total_bytes
    if declared is not None and totals and declared not in totals:
        ours = declared_totals(claims)
        means = [sum(values) / len(values) for values in (totals, ours) if len(values) > 1]
        if any(abs(declared - mean) < 1 for mean in means):
            text = f"the cap holds for each seed; bytes_total {declared:,} is a mean, the largest is {max(totals):,}"
            yield Finding("strict", "B1", "I38", text)
        else:
            yield _differs(f"bytes_total {declared:,} is not {' or '.join(f'{v:,}' for v in totals)} of the logs")
    elif declared is not None and totals and declared < max(totals):
        text = f"bytes_total is the largest of all seeds; {declared:,} is declared and {max(totals):,} logged"
        yield Finding("note", "B1", "I38", text)
    for names, attribute in (
        (("bytes_code", "code_bytes"), "counted_code_bytes"),
        (_model_names(claims), "model_bytes"),
    ):
        value = claims.number(*names)
        runs = [each.run for each in folder.evidence]
        known = {v for run in runs if (v := getattr(run, attribute)) is not None} | (
            {run.code_bytes for run in runs if run.code_bytes} if attribute == "counted_code_bytes" else set()
        )
        if value is not None and known and int(value) not in known:
            said = " or ".join(f"{v:,}" for v in sorted(known))
            yield _differs(f"{names[0]} {int(value):,} is not {said} of the logs")


def _model_names(claims: Claims) -> tuple[str, ...]:
    return tuple(name for name in claims.raw if name.startswith("bytes_model")) or ("bytes_model",)


def _differs(text: str) -> Finding:
    return Finding("error", "S4", "I41", text)


def check_statistics(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """Mean, best seed, standard deviations and p, recomputed from the seeds."""
    del rules
    claims = folder.claims
    if claims is None:
        return
    values = seed_values(folder)
    yield from _check_mean(claims, values)
    losses = _seed_losses(folder)
    for name, kind, declared in claims.spreads():
        yield from _check_spread(name, declared, list(values.values()) if kind == "bpb" else losses)
    yield from _check_p(claims)


def seed_values(folder: Folder) -> dict[str, float]:
    """{seed: BPB}: as declared, to the digits of the log where it says the same; else the logs' own."""
    declared = {each.entry.seed: float(each.value) for each in backed(folder) if each.value is not None}
    if declared:
        return declared
    headline = folder.claims.val_bpb if folder.claims else None
    best: dict[str, float] = {}
    for values in by_label(folder.evidence).values():
        numbers = {seed: float(value) for seed, value in values.items()}
        told = [*numbers.values(), _mean(list(numbers.values()))]
        if headline is not None and len(numbers) > 1 and any(same(headline, value) for value in told):
            best = numbers  # the last label counts: rounded lines come before exact ones
    return best


def _seed_losses(folder: Folder) -> list[float]:
    seeds = backed(folder)
    known = [each.score.val_loss if each.score else each.entry.number("val_loss") for each in seeds]
    if seeds:
        return [float(value) for value in known if value is not None]
    scores = [claimed_score(folder, each) for each in folder.evidence]
    return [float(score.val_loss) for score in scores if score]


def _check_mean(claims: Claims, values: Mapping[str, float]) -> Iterator[Finding]:
    bpb = claims.val_bpb
    if bpb is None or len(values) < 2:
        return
    mean, best = _mean(list(values.values())), min(values.values())
    if same(bpb, mean) or abs(float(bpb) - mean) < 1.5e-5:
        return
    seeds = [seed for seed, value in values.items() if same(bpb, value)]
    if seeds and same(bpb, best):
        text = f"the headline {bpb} is the best of {len(values)} seeds (seed {seeds[0]}); their mean is {mean:.6f}"
        yield Finding("strict", "B4", "I38", text)
    elif seeds:
        text = f"the headline {bpb} is one seed's ({seeds[0]}); the mean of {len(values)} is {mean:.6f}"
        yield Finding("strict", "B4", "I38", text)
    elif claims.entries:
        yield _differs(f"the headline {bpb} is not the mean of its {len(values)} seeds, {mean:.6f}")


def _check_spread(name: str, declared: Decimal, values: Sequence[float]) -> Iterator[Finding]:
    if len(values) < 2:
        return
    sample, population = statistics.stdev(values), statistics.pstdev(values)
    if same(declared, sample):
        return
    facts = {"declared": float(declared), "sample": sample, "population": population, "n": len(values)}
    if same(declared, population):
        text = f"{name} {declared} is the population's (ddof 0); the sample's (ddof 1) is {sample:.8f}"
        yield Finding("strict", "S1", "I39", text, facts)
    else:
        text = f"{name} {declared} is neither the sample's {sample:.8f} nor the population's {population:.8f}"
        yield Finding("strict", "S1", "I39", text, facts)


def _check_p(claims: Claims) -> Iterator[Finding]:
    """p from the t and df that stand beside it; without them there is nothing to recompute it from."""
    p = claims.number("p_value")
    t, df = claims.number("t_statistic"), claims.number("welch_df", "df")
    if p is None:
        return
    if t is None or df is None:
        text = f"p_value {p} stands alone: without the reference's seeds, or t and df, nobody can recompute it"
        yield Finding("note", "S1", "", text)
        return
    from scipy.stats import t as student

    one = float(student.sf(abs(float(t)), float(df)))
    if not (same(p, one) or same(p, 2 * one)):
        text = f"p_value {p} is not that of t {t} and df {df}: {one:.3g} one-sided, {2 * one:.3g} two-sided"
        yield _differs(text)


def figures(folder: Folder) -> dict[str, Any]:
    """Mean and both standard deviations of the seeds."""
    values = seed_values(folder)
    if not values:
        return {}
    numbers = list(values.values())
    spread = {"std_ddof1": statistics.stdev(numbers), "std_ddof0": statistics.pstdev(numbers)} if numbers[1:] else {}
    return {"seeds": values, "n": len(numbers), "mean_bpb": _mean(numbers), "best_bpb": min(numbers), **spread}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
