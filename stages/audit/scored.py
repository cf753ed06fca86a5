"""Audits a scorer, and says what was found of each rule."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from model.referee import priced
from model.stream import TokenStream
from model.windows import Span, Windows
from stages.audit.cost import REQUESTS, Meter
from stages.audit.finding import Finding, Verdict
from stages.audit.interview import BadAnswer, Interview, Worst
from stages.audit.perturb import donor, other_future
from stages.audit.records import LedgerFile
from stages.audit.settings import Settings
from stages.audit.state import changed, digests
from stages.audit.subject import OpenScorer, Scorer

_SHOWN = 8  # names that a finding quotes


def audit_scorer(
    open_scorer: OpenScorer,
    stream: TokenStream,
    windows: Windows,
    chunk: int,
    settings: Settings,
    ledger: LedgerFile | None = None,
    meter: Meter | None = None,
) -> list[Finding]:
    """Ask a scorer about parts of the stream, before it has learned and in up to `settings.chunks` later states.

    `chunk` is the targets between updates, 0 for a scorer that learns nothing. `meter` hears what it cost.
    """
    scorer = open_scorer()
    meter = meter if meter is not None else Meter()
    if scorer.exposed:
        return _exposed(scorer, stream, windows, settings, meter)
    if settings.budget_tokens < REQUESTS * windows.context:
        return [_unasked(rule, settings) for rule in ("C1", "C2", "C3", "E4")]
    interview = Interview(scorer, stream, windows, settings, ledger, meter)
    # A scorer that learns nothing has one state, whatever spans bound the referee's memory.
    spans = list(windows.spans(chunk)) if chunk else list(islice(windows.spans(chunk), 1))
    try:
        reached = _examine(interview, spans, settings, windows)
        trace = _without_a_trace(interview, reached) if ledger is None and len(reached) > 1 else None
    except BadAnswer as error:
        return [Finding(rule="C2", detector="T2b", verdict="fail", says=f"An answer was refused: {error}.")]
    found = _findings(interview, settings, ledger, trace)
    return [*found, _untaught(settings)] if len(reached) == 1 < len(spans) else found


def _examine(interview: Interview, spans: list[Span], settings: Settings, windows: Windows) -> list[Span]:
    """Examine the states that the budget reaches, with equal shares; returns all spans up to the last one."""
    states = _states(spans, settings, windows)
    budget = (settings.budget_tokens - states[-1] * settings.update_tokens) // len(states)
    interview.scorer.reset()
    for index, span in enumerate(spans[: states[-1] + 1]):
        if index:
            interview.learn(spans[index - 1], look=index in states)
        if index in states:
            interview.examine(span, budget)
    return spans[: states[-1] + 1]


def _states(spans: list[Span], settings: Settings, windows: Windows) -> list[int]:
    """Before learning, after the first chunk, and after some later ones drawn by lot.

    What comes early could be told from what comes late, so the lot reaches as far as half of the budget pays for the
    learning on the way.
    """
    least, update = REQUESTS * windows.context, settings.update_tokens
    count = min(settings.chunks + 1, max(settings.budget_tokens // least, 1))
    reach = min(len(spans) - 1, settings.budget_tokens // 2 // update if update else len(spans))
    later = settings.lots("states").permutation(np.arange(2, reach + 1))[: max(count - 2, 0)]
    states = [0, *([1] if count > 1 and len(spans) > 1 else []), *sorted(later.tolist())]
    while len(states) > 1 and settings.budget_tokens - states[-1] * update < len(states) * least:
        states.pop()
    return states


def _without_a_trace(interview: Interview, spans: list[Span]) -> Worst:
    """Whether a scorer that was asked nothing before it learned gives the answers of one that was asked a lot."""
    answer = interview.first_answer(spans[-1])
    interview.scorer.reset()
    for span in spans[:-1]:
        interview.learn(span)
    worst = Worst()
    worst.compare(interview.first_answer(spans[-1]), answer, interview.settings.tolerance, target=spans[-1].lo)
    return worst


def _untaught(settings: Settings) -> Finding:
    says = (
        f"What it does once it has learned is not known: to learn from a chunk costs {settings.update_tokens} tokens, "
    )
    says += f"and the audit may spend {settings.budget_tokens}."
    return Finding(rule="C3", detector="T3", verdict="unknown", says=says)


def _unasked(rule: str, settings: Settings) -> Finding:
    says = f"One question costs more than the {settings.budget_tokens} tokens that this audit may spend."
    return Finding(rule=rule, detector="T1", verdict="unknown", says=says)


def _findings(
    interview: Interview, settings: Settings, ledger: LedgerFile | None, trace: Worst | None
) -> list[Finding]:
    found = [_repeats(interview, settings), *_futures(interview), _mass(interview, settings), _state(interview)]
    if trace is not None:
        found.append(_judge("C3", "T3", trace, "What it was asked left a trace in what it answers after an update."))
    if ledger is not None:
        found.append(_replayed(interview, settings))
    return found


def _judge(rule: str, detector: str, worst: Worst, bad: str, good: str = "", **also: object) -> Finding:
    verdict: Verdict = "fail" if worst.different else "pass" if worst.compared else "unknown"
    says = {"fail": bad, "pass": good or "Answers are equal.", "unknown": "Nothing was compared."}[verdict]
    return Finding(rule=rule, detector=detector, verdict=verdict, says=says, evidence=worst.evidence(**also))


def _repeats(interview: Interview, settings: Settings) -> Finding:
    return _judge(
        "C3",
        "T17",
        interview.again,
        "The same question was answered differently: scoring changes what is scored, or noise hides the rest.",
        "The same question got the same answer, whatever was asked in between.",
        allowed=settings.tolerance,
    )


def _futures(interview: Interview) -> list[Finding]:
    cuts = interview.cuts
    return [
        _judge(
            "C1",
            "T1",
            interview.future,
            "What is predicted depends on tokens that come later.",
            "No prediction moved when all tokens from a cut on were others.",
            cuts=cuts["text"] + cuts["noise"],
        ),
        _judge(
            "C1",
            "T2",
            interview.swap,
            "What is predicted depends on the token that is to be predicted, or on a later one.",
            "No prediction moved when the token to be predicted was another one.",
            cuts=cuts["swap"],
        ),
    ]


def _normalised_here() -> Finding:
    says = "The referee divides by the sum over the whole vocabulary itself."
    return Finding(rule="C2", detector="T2b", verdict="pass", says=says, evidence={"by": "construction"})


def _mass(interview: Interview, settings: Settings) -> Finding:
    mass = interview.mass
    if not mass.positions:
        return _normalised_here()
    off = abs(mass.worst - 1)
    return Finding(
        rule="C2",
        detector="T2b",
        verdict="pass" if off <= settings.tolerance_mass else "fail",
        says=f"Over the whole vocabulary, masses sum to {mass.worst:.6g} where that is farthest from 1.",
        evidence={"positions": mass.positions, "worst_sum": mass.worst, "target": mass.target},
    )


def _state(interview: Interview) -> Finding:
    evidence = {"updates": interview.updates, "parts_that_updates_changed": interview.learned[:_SHOWN]}
    trained = interview.trained_while_scoring + interview.scorer.trained_while_scoring
    if interview.stale or trained:
        says = "State changed while targets were scored; it may change only once they are."
        also = {"changed": interview.stale, "backward_or_steps": trained}
        return Finding(rule="C3", detector="T3", verdict="fail", says=says, evidence={**evidence, **also})
    says = "Weights, optimizer, counts and caches were the same before and after scoring."
    return Finding(rule="C3", detector="T3", verdict="pass", says=says, evidence=evidence)


def _replayed(interview: Interview, settings: Settings) -> Finding:
    both = Worst(
        interview.exact.compared + interview.replay.compared,
        interview.exact.different + interview.replay.different,
        max(interview.exact.most, interview.replay.most),
        interview.exact.where + interview.replay.where,
    )
    return _judge(
        "E4",
        "T0",
        both,
        "A scorer that has nothing but archive and tokenizer gives other prices than the ledger.",
        "A scorer that has nothing but archive and tokenizer gives the ledger's prices.",
        equal_bits_demanded=interview.exact.compared,
        allowed_nats=settings.tolerance_replay_nats,
        updates=interview.updates,
    )


def _exposed(scorer: Scorer, stream: TokenStream, windows: Windows, settings: Settings, meter: Meter) -> list[Finding]:
    """What it does to a scorer to be shown a stream before it scores: two streams, equal up to a cut."""
    targets = min(settings.exposed_targets or windows.targets, windows.targets)
    tokens_N = stream.read(0, targets + 1)
    cut = windows.context
    other_N = other_future(tokens_N, cut, "noise", donor(stream), settings.lots("exposed"))
    cost = scorer.trained_tokens
    answers, parts = [], []
    for shown in (tokens_N, other_N):
        scorer.reset()
        before = digests(scorer.state())
        scorer.expose(torch.from_numpy(shown))
        parts = changed(before, digests(scorer.state()))
        inputs_1T = torch.from_numpy(tokens_N[None, : windows.context].copy())
        answers.append(scorer.score(inputs_1T, windows.context)[0].float().cpu())
        meter.forward_tokens += inputs_1T.numel()
    meter.trained_tokens += scorer.trained_tokens - cost
    targets_K = torch.from_numpy(tokens_N[1 : windows.context + 1])
    worst = Worst()
    shown_K1, other_K1 = (priced(answer_KV, targets_K)[0][: cut - 1, None] for answer_KV in answers)
    worst.compare(other_K1, shown_K1, settings.tolerance)
    early = Finding(
        rule="C3",
        detector="T3",
        verdict="fail" if parts else "pass",
        says="State changed before a single target was scored." if parts else "Being shown the stream changed nothing.",
        evidence={"changed": parts[:_SHOWN], "targets_shown": targets},
    )
    says = "Prices depend on tokens that come later, through what was learned from them."
    found = [_judge("C1", "T1", worst, says, cut=cut, targets_shown=targets), early]
    return [*found, _normalised_here()] if scorer.normalised and not scorer.log_probabilities else found
