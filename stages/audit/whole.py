"""Audits an evaluation from outside: it gets whole streams, changed here and there, and prices are compared.

What can be told apart from outside:
    a price moves when a later token does                                   C1
    prices of all tokens at one place do not sum to 1, and C1 holds         C2: no distribution stands behind them
    they do not, and C1 does not hold either                                C3: the target changed what priced it
    prices of a stream's beginning depend on its length                     C1 (T6)
"""

from __future__ import annotations

import math

import numpy as np

from stages.audit.events import audit_events
from stages.audit.finding import Finding, Verdict
from stages.audit.perturb import KINDS, other_future
from stages.audit.settings import Claims, Settings
from stages.audit.subject import WholeStream

_PREFIXES = 3
_SHOWN = 8


class BadPrices(ValueError):
    """What an evaluation returned are no prices."""


class _Evaluation:
    """Calls it, and checks what comes back."""

    def __init__(self, evaluate: WholeStream) -> None:
        self._evaluate = evaluate
        self.calls = 0

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        self.calls += 1
        nll_N = np.asarray(self._evaluate(tokens.copy()), dtype=np.float64)
        if nll_N.shape != (len(tokens) - 1,):
            raise BadPrices(f"{len(tokens)} tokens have {len(tokens) - 1} targets; {list(nll_N.shape)} prices came")
        return nll_N


def audit_whole_stream(
    evaluate: WholeStream, tokens: np.ndarray, vocab: int, settings: Settings, claims: Claims | None = None
) -> list[Finding]:
    """Ask a whole evaluation about changed streams.

    It is called about `settings.cuts` times, and `vocab` times for each of `settings.mass_places` places: give it a
    short stream. `tokens` [N + 1] are int64 ids below `vocab`.
    """
    claims = claims or Claims()
    ask, lots = _Evaluation(evaluate), settings.lots("whole")
    try:
        nll_N = ask(tokens)
        if not np.isfinite(nll_N).all():
            raise BadPrices("prices are finite; some of these are not")
        floor = float(np.abs(ask(tokens) - nll_N).max())
        futures = _futures(ask, tokens, nll_N, vocab, settings, lots)
        causal = all(finding.verdict != "fail" for finding in futures)
        found = [
            _repeats(floor, settings),
            *futures,
            _prefixes(ask, tokens, nll_N, settings),
            _mass(ask, tokens, nll_N, vocab, settings, lots, causal),
        ]
        if claims.isolates_documents is not None:
            found.append(_documents(ask, tokens, nll_N, claims.isolates_documents, settings, lots))
    except BadPrices as error:
        found = [Finding(rule="E1", detector="T8", verdict="fail", says=f"A stream was not scored whole: {error}.")]
    return [*found, *_claimed(claims, len(tokens) - 1)]


def _repeats(floor: float, settings: Settings) -> Finding:
    same = floor <= settings.tolerance
    return Finding(
        rule="S1",
        detector="T17",
        verdict="pass" if same else "fail",
        says="The same stream got the same prices twice." if same else "The same stream got other prices again.",
        evidence={"largest_difference": floor, "allowed": settings.tolerance},
    )


def _futures(
    ask: _Evaluation, tokens: np.ndarray, nll_N: np.ndarray, vocab: int, settings: Settings, lots: np.random.Generator
) -> list[Finding]:
    """T1 and T2: change tokens from a cut on, or one; the prices of targets before it must not move."""
    worst: dict[str, dict] = {"T1": {"cuts": 0, "most": 0.0, "moved": []}, "T2": {"cuts": 0, "most": 0.0, "moved": []}}
    # Ids that do not occur would be a giveaway; ids of the stream look like any text.
    ids = np.unique(tokens) if len(np.unique(tokens)) > 1 else np.arange(vocab)
    for index in range(settings.cuts):
        kind = KINDS[index % len(KINDS)]
        cut = _cut(tokens, lots)
        donor = tokens if kind == "text" else ids
        found = worst["T2" if kind == "swap" else "T1"]
        earlier = slice(0, cut - 1)  # target i is token i + 1
        off_N = np.abs(ask(other_future(tokens, cut, kind, donor, lots))[earlier] - nll_N[earlier])
        off_N = np.nan_to_num(off_N, nan=math.inf)
        found["cuts"] += 1
        found["most"] = max(found["most"], float(off_N.max(initial=0.0)))
        if (moved := np.flatnonzero(off_N > settings.tolerance)).size and len(found["moved"]) < _SHOWN:
            shown = {"kind": kind, "cut": cut, "targets_moved": int(moved.size), "first": int(moved[0])}
            found["moved"].append({**shown, "distance": cut - 1 - int(moved[0])})
    bad = {
        "T1": "Prices depend on tokens that come after their target.",
        "T2": "Changing one token changed prices of targets before it.",
    }
    good = "No price moved when tokens after its target were others."
    return [_moved(detector, found, good, bad[detector]) for detector, found in worst.items()]


def _moved(detector: str, found: dict, good: str, bad: str) -> Finding:
    verdict: Verdict = "fail" if found["moved"] else "pass" if found["cuts"] else "unknown"
    evidence = {"cuts": found["cuts"], "largest_difference": found["most"], "moved": found["moved"]}
    return Finding(
        rule="C1", detector=detector, verdict=verdict, says=bad if found["moved"] else good, evidence=evidence
    )


def _cut(tokens: np.ndarray, lots: np.random.Generator) -> int:
    """A token with at least one target before it; half of them begin a document."""
    starts = np.flatnonzero(tokens == tokens[0])
    starts = starts[starts >= 2]
    return int(lots.choice(starts)) if len(starts) and lots.integers(2) else int(lots.integers(2, len(tokens)))


def _prefixes(ask: _Evaluation, tokens: np.ndarray, nll_N: np.ndarray, settings: Settings) -> Finding:
    """T6: the beginning of a stream costs the same, wherever the stream ends."""
    most, refused, compared = 0.0, [], 0
    for part in range(1, _PREFIXES + 1):
        targets = len(nll_N) * part // (_PREFIXES + 1) // 2 * 2
        if not targets:
            continue
        try:
            off = np.abs(ask(tokens[: targets + 1]) - nll_N[:targets])
        except (BadPrices, ValueError, IndexError, RuntimeError) as error:
            refused.append(f"{targets} targets: {error}")
            continue
        compared += targets
        most = max(most, float(np.nan_to_num(off, nan=math.inf).max()))
    verdict: Verdict = "fail" if most > settings.tolerance else "pass" if compared else "unknown"
    says = {
        "fail": "Prices of a stream's beginning depend on where it ends.",
        "pass": "Prices of a stream's beginning are the same wherever it ends.",
        "unknown": "It does not score shorter streams.",
    }[verdict]
    evidence = {"targets_compared": compared, "largest_difference": most, **({"refused": refused} if refused else {})}
    return Finding(rule="C1", detector="T6", verdict=verdict, says=says, evidence=evidence)


def _mass(
    ask: _Evaluation,
    tokens: np.ndarray,
    nll_N: np.ndarray,
    vocab: int,
    settings: Settings,
    lots: np.random.Generator,
    causal: bool,
) -> Finding:
    """T2b: what every token would have cost at one place, summed as masses."""
    places = sorted({int(place) for place in lots.integers(len(nll_N) // 2, len(nll_N), size=settings.mass_places)})
    sums: dict[int, float] = {}
    for place in places:
        masses = []
        for token in range(vocab):
            other = tokens.copy()
            other[place + 1] = token
            masses.append(math.exp(-ask(other)[place]))
        sums[place] = math.fsum(masses)
    worst = max(sums.values(), key=lambda total: abs(total - 1), default=1.0)
    off = abs(worst - 1) > settings.tolerance_mass
    if off and not causal:
        says = "The token that comes changes the very state that prices it: masses do not sum to 1."
        return Finding(rule="C3", detector="T2b", verdict="fail", says=says, evidence={"sums": _texts(sums)})
    return Finding(
        rule="C2",
        detector="T2b",
        verdict="fail" if off else "pass" if sums else "unknown",
        says=f"Masses over the whole vocabulary sum to {worst:.6g} where that is farthest from 1.",
        evidence={"sums": _texts(sums)},
    )


def _texts(sums: dict[int, float]) -> dict[str, float]:
    return {str(place): total for place, total in sums.items()}


def _documents(
    ask: _Evaluation, tokens: np.ndarray, nll_N: np.ndarray, bos: int, settings: Settings, lots: np.random.Generator
) -> Finding:
    """T9: after other documents, in other numbers and lengths, the last document's price is the same.

    To permute them is not enough: counts do not depend on an order.
    """
    starts = np.flatnonzero(tokens == bos)
    if len(starts) < 2:
        return Finding(rule="C1", detector="T9", verdict="unknown", says="There is no document before the last.")
    last = int(starts[-1])
    ids = np.unique(tokens)
    other = tokens.copy()
    chosen = lots.integers(len(ids), size=last)
    chosen[ids[chosen] == tokens[:last]] += 1  # every token is another: documents end alike, and one may read no more
    other[:last] = ids[chosen % len(ids)]
    other[0] = tokens[0]
    own = slice(last, None)  # targets of the last document; its BOS is the one before
    most = float(np.abs(ask(other)[own] - nll_N[own]).max(initial=0.0))
    same = most <= settings.tolerance
    says = "A document's price does not depend" if same else "It claims to score documents alone; a price depends"
    return Finding(
        rule="C1",
        detector="T9",
        verdict="pass" if same else "fail",
        says=f"{says} on the documents before it.",
        evidence={"documents": len(starts), "largest_difference": most},
    )


def _claimed(claims: Claims, targets: int) -> list[Finding]:
    found = audit_events(claims.journal, targets, claims.known_targets) if claims.journal else []
    if claims.trained_before_first_score is not None:
        trained = claims.trained_before_first_score
        says = "Nothing was trained before the first price was fixed."
        if trained:
            says = f"{trained} backward passes or optimizer steps came before the first price was fixed."
        verdict: Verdict = "fail" if trained else "pass"
        evidence = {"backward_or_steps": trained}
        found.append(Finding(rule="C3", detector="T3", verdict=verdict, says=says, evidence=evidence))
    return found
