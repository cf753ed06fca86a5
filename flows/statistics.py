"""Is one configuration better than another, given the noise of its seeds? The challenge's own test, with its units.

The organisers publish p-values of a one-sided Welch test on bits per byte (BPB), one value per seed, sample variances
(ddof 1), margin 0. Their README asks for 0.005 nats at p < 0.01 and does not say nats of what: of a token, which is
another amount of BPB for each tokenizer, or of a byte. So every reading is computed and the strictest is marked.

An improvement is positive: the old mean less the new one, since lower is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

MARGIN_NATS = 0.005  # the challenge's README
LEVEL = 0.01  # the challenge's README
FRONTIER_LEVEL = 0.25  # what the organisers accepted against the row before, with margin 0
CONFIDENCE = 0.95
_SAME_TOKENS = 1e-3  # relative difference of nats per BPB below which two scores count the same tokens


@dataclass(frozen=True)
class Estimate:
    """What n values of one configuration say: mean, sample standard deviation (ddof 1), 95 % interval of the mean."""

    n: int
    mean: float
    std: float | None  # None: one value has no spread
    low: float | None
    high: float | None
    values: tuple[float, ...] = ()

    @property
    def variance_of_mean(self) -> float:
        """Squared standard error."""
        return (self.std or 0.0) ** 2 / self.n


def estimate(values: Sequence[float]) -> Estimate:
    """The estimate of at least one value."""
    if not values:
        raise ValueError("an estimate is of at least one value; got none; wait until a seed has finished")
    std = statistics.stdev(values) if len(values) > 1 else None
    return summary(len(values), statistics.fmean(values), std, tuple(values))


def summary(n: int, mean: float, std: float | None, values: tuple[float, ...] = ()) -> Estimate:
    """The estimate of which only n, mean and sample standard deviation are known."""
    if std is None or n < 2:
        return Estimate(n, mean, None, None, None, values)
    half = _upper((1 - CONFIDENCE) / 2, n - 1) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half, values)


def _upper(level: float, df: float) -> float:
    """The t that Student's distribution exceeds with this probability."""
    return -float(_student().stdtrit(df, level))


def _student() -> Any:
    """SciPy's special functions, imported when a test is made; `scipy.stats` has the same numbers and takes 1.4 s."""
    from scipy import special

    return special


@dataclass(frozen=True)
class MeanTest:
    """A one-sided test of `improvement > margin`, and the two-sided 95 % interval of the improvement."""

    method: Literal["Welch", "one-sample", "paired"]
    n: tuple[int, int]  # new, old; of a paired test the pairs, twice
    improvement: float
    margin: float
    t: float | None  # None where `note` says why there is no test
    df: float | None
    p: float | None
    low: float | None
    high: float | None
    note: str = ""


def welch(new: Estimate, old: Estimate, margin: float = 0.0) -> MeanTest:
    """Welch's test of two means whose variances differ: t = (old - new - margin) / sqrt(s_n^2 / n + s_o^2 / m).

    df by Welch and Satterthwaite: (a + b)^2 / (a^2 / (n - 1) + b^2 / (m - 1)) with the squared standard errors a, b.
    """
    n, improvement = (new.n, old.n), old.mean - new.mean
    if new.std is None or old.std is None:
        note = f"needs two values or more on each side; there are {new.n} and {old.n}"
        return MeanTest("Welch", n, improvement, margin, None, None, None, None, None, note)
    a, b = new.variance_of_mean, old.variance_of_mean
    if a + b <= 0:
        return MeanTest("Welch", n, improvement, margin, None, None, None, None, None, _NO_SPREAD)
    # Shares of the whole, because the squares of small variances would underflow.
    share_a, share_b = a / (a + b), b / (a + b)
    df = 1 / (share_a**2 / (new.n - 1) + share_b**2 / (old.n - 1))
    return _test("Welch", n, improvement, margin, math.sqrt(a + b), df)


def one_sample(new: Estimate, old_mean: float, margin: float = 0.0, old_n: int = 1) -> MeanTest:
    """The early convention: the old mean as if it were exact. It understates p; read it beside Welch, never instead."""
    n, improvement = (new.n, old_n), old_mean - new.mean
    if new.std is None:
        note = f"needs two values or more; there is {new.n}"
        return MeanTest("one-sample", n, improvement, margin, None, None, None, None, None, note)
    if new.std <= 0:
        return MeanTest("one-sample", n, improvement, margin, None, None, None, None, None, _NO_SPREAD)
    return _test("one-sample", n, improvement, margin, new.std / math.sqrt(new.n), new.n - 1)


def paired(new: Sequence[float], old: Sequence[float], margin: float = 0.0) -> MeanTest:
    """Paired differences, for ablations: the i-th values of both share their seed, whose luck then cancels."""
    if len(new) != len(old):
        raise ValueError(f"pairs are of equal number; got {len(new)} and {len(old)}; leave out seeds without a partner")
    found = estimate([before - after for after, before in zip(new, old, strict=True)])
    pairs = (found.n, found.n)
    if found.std is None:
        note = f"needs two pairs or more; there is {found.n}"
        return MeanTest("paired", pairs, found.mean, margin, None, None, None, None, None, note)
    if found.std <= 0:
        return MeanTest("paired", pairs, found.mean, margin, None, None, None, None, None, _NO_SPREAD)
    return _test("paired", pairs, found.mean, margin, found.std / math.sqrt(found.n), found.n - 1)


_NO_SPREAD = "the values do not differ at all, so there is no noise to compare with; were the seeds really different?"


def _test(
    method: Literal["Welch", "one-sample", "paired"],
    n: tuple[int, int],
    improvement: float,
    margin: float,
    error: float,
    df: float,
) -> MeanTest:
    """A test with standard error `error` of the improvement."""
    t = (improvement - margin) / error
    half = _upper((1 - CONFIDENCE) / 2, df) * error
    p = float(_student().stdtr(df, -t))  # P(T >= t): the distribution is symmetric, and small tails keep their digits
    return MeanTest(method, n, improvement, margin, t, df, p, improvement - half, improvement + half)


@dataclass(frozen=True)
class Reading:
    """One reading of the rule: what unit the margin is in, and the tests."""

    name: str
    unit: Literal["BPB", "nats/token"]  # of the values and of the margin that were tested
    welch: MeanTest
    one_sample: MeanTest
    strictest: bool = False


@dataclass(frozen=True)
class Comparison:
    """Every reading of the record rule, new against old."""

    readings: tuple[Reading, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def strictest(self) -> Reading:
        """The reading with the largest margin: who passes it passes all."""
        return next(reading for reading in self.readings if reading.strictest)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """The scores of one configuration: BPB, one value per seed, and what turns them into nats per token."""

    bpb: Estimate
    nats_per_bpb: float | None = None  # nats per token that one bit per byte is: ln 2 * bytes / tokens
    nats: Estimate | None = None  # nats per token as logged; None: from BPB

    def in_nats(self) -> Estimate | None:
        """Nats per token, as logged or converted."""
        if self.nats is not None or self.nats_per_bpb is None:
            return self.nats
        factor, bpb = self.nats_per_bpb, self.bpb
        std = None if bpb.std is None else bpb.std * factor
        return summary(bpb.n, bpb.mean * factor, std, tuple(value * factor for value in bpb.values))


def compare(new: Scores, old: Scores) -> Comparison:
    """All readings of "beats the old one": margin 0, and 0.005 nats of a token and of a byte."""
    margins = [("margin 0, as the organisers test", 0.0)]
    notes: list[str] = []
    same_tokens = _same_tokens(new, old)
    if new.nats_per_bpb:
        whose = "" if same_tokens else ", new tokenizer"
        margins.append((f"0.005 nats per token{whose}", MARGIN_NATS / new.nats_per_bpb))
    if old.nats_per_bpb and not same_tokens:
        margins.append(("0.005 nats per token, old tokenizer", MARGIN_NATS / old.nats_per_bpb))
    margins.append(("0.005 nats per byte", MARGIN_NATS / math.log(2)))
    most = max(margin for _, margin in margins)
    readings = [_reading(name, "BPB", new.bpb, old.bpb, margin, margin == most) for name, margin in margins]
    new_nats, old_nats = new.in_nats(), old.in_nats()
    if new_nats is None or old_nats is None:
        notes.append("no test in nats per token: it is not known how many tokens a side has per byte")
    elif not same_tokens:
        notes.append("no test in nats per token: the tokenizers differ, and so does what a token is")
    else:
        readings += [
            _reading("margin 0", "nats/token", new_nats, old_nats, 0.0),
            _reading("0.005 nats per token", "nats/token", new_nats, old_nats, MARGIN_NATS),
        ]
    return Comparison(tuple(readings), tuple(notes))


def _same_tokens(new: Scores, old: Scores) -> bool:
    if not (new.nats_per_bpb and old.nats_per_bpb):
        return False
    return math.isclose(new.nats_per_bpb, old.nats_per_bpb, rel_tol=_SAME_TOKENS)


def _reading(
    name: str,
    unit: Literal["BPB", "nats/token"],
    new: Estimate,
    old: Estimate,
    margin: float,
    strictest: bool = False,
) -> Reading:
    return Reading(name, unit, welch(new, old, margin), one_sample(new, old.mean, margin, old.n), strictest)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of several comparisons, adjusted so that the chance of any false claim among them stays at the level.

    Holm's method: the i-th smallest of m is multiplied by m - i (from 0), never below the one before it. None stays.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[place] = least
    return adjusted


def detectable(std: float, n: int, m: int, level: float = LEVEL) -> float:
    """The improvement that must be observed for p < level, if both sides have this spread: what n seeds can show."""
    if n < 2 or m < 2:
        raise ValueError(f"a spread needs two seeds or more on each side; got {n} and {m}; plan more")
    error = std * math.sqrt(1 / n + 1 / m)
    df = (1 / n + 1 / m) ** 2 / ((1 / n) ** 2 / (n - 1) + (1 / m) ** 2 / (m - 1))
    return _upper(level, df) * error
