"""Whole evaluations seen from outside: what they cannot hide, and what honest ones are not accused of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from model.ledger import Event
from stages.audit.settings import Claims, Settings
from stages.audit.whole import audit_whole_stream

VOCAB, BOS = 12, 1
SETTINGS = Settings(lot="fixed", cuts=24)
rng = np.random.default_rng(5)
TOKENS = np.concatenate([np.r_[BOS, rng.integers(2, VOCAB, size=n)] for n in (20, 35, 11, 40, 28, 17)]).astype(np.int64)


def counting(tokens: np.ndarray, *, start: np.ndarray | None = None, weight: float = 1.0) -> np.ndarray:
    """Bigram counts of what came before, over a flat prior: causal, normalised, learns from each token once."""
    counts = np.ones((VOCAB, VOCAB)) if start is None else start.copy()
    nll = np.empty(len(tokens) - 1)
    for i, (x, y) in enumerate(itertools.pairwise(tokens)):
        nll[i] = -np.log(counts[x, y] / counts[x].sum())
        counts[x, y] += weight
    return nll


def stateless(tokens: np.ndarray) -> np.ndarray:
    return counting(tokens, weight=0.0)


def counts_of(tokens: np.ndarray) -> np.ndarray:
    counts = np.ones((VOCAB, VOCAB))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1.0)
    return counts


def chunked(tokens: np.ndarray) -> np.ndarray:
    """Score-first: chunks of 16, each learned once it is scored."""
    counts, nll = np.ones((VOCAB, VOCAB)), np.empty(len(tokens) - 1)
    for lo in range(0, len(nll), 16):
        x, y = tokens[lo : min(lo + 16, len(nll))], tokens[lo + 1 : min(lo + 16, len(nll)) + 1]
        nll[lo : lo + 16] = -np.log(counts[x, y] / counts[x].sum(1))
        np.add.at(counts, (x, y), 1.0)
    return nll


def adapts_then_scores(tokens):
    return counting(tokens, start=counts_of(tokens), weight=0.0)


def chunk_first_trained(tokens):
    """The decoy: each chunk is scored, the scores are thrown away, it trains, and scores again."""
    counts, nll = np.ones((VOCAB, VOCAB)), np.empty(len(tokens) - 1)
    for lo in range(0, len(nll), 16):
        x, y = tokens[lo : min(lo + 16, len(nll))], tokens[lo + 1 : min(lo + 16, len(nll)) + 1]
        np.add.at(counts, (x, y), 1.0)
        nll[lo : lo + 16] = -np.log(counts[x, y] / counts[x].sum(1))
    return nll


def best_of_two_passes(tokens):
    return np.minimum(counting(tokens), counting(tokens, start=counts_of(tokens)))


def sorted_by_length(tokens):
    """Documents in order of length; learns on the way."""
    starts = np.flatnonzero(tokens == BOS)
    ends = np.append(starts[1:], len(tokens))
    nll, counts = np.zeros(len(tokens) - 1), np.ones((VOCAB, VOCAB))
    for i in np.argsort(starts - ends, kind="stable"):
        for at in range(max(starts[i], 1), ends[i]):
            x, y = tokens[at - 1], tokens[at]
            nll[at - 1] = -np.log(counts[x, y] / counts[x].sum())
            counts[x, y] += 1
    return nll


def schedule_over_the_stream(tokens):
    """A rate that falls over the stream's length."""
    counts, nll = np.ones((VOCAB, VOCAB)), np.empty(len(tokens) - 1)
    for i, (x, y) in enumerate(itertools.pairwise(tokens)):
        nll[i] = -np.log(counts[x, y] / counts[x].sum())
        counts[x, y] += 1 - i / len(nll)
    return nll


def hashed_ratio(tokens):
    """Counts in buckets of context and target, read at the target only."""
    full, contexts, nll = np.zeros(4), np.zeros(4), np.empty(len(tokens) - 1)
    for i, (x, y) in enumerate(itertools.pairwise(tokens)):
        share = min(full[(x ^ y) % 4], contexts[x % 4]) / max(contexts[x % 4], 1)
        nll[i] = -np.log(0.5 / VOCAB + 0.5 * share)
        full[(x ^ y) % 4] += 1
        contexts[x % 4] += 1
    return nll


def only_if_it_helps(tokens):
    """An oracle gate: the better of two predictions, chosen by the token that came."""
    return np.minimum(counting(tokens), stateless(tokens))


def found(evaluate, claims=None, tokens=TOKENS, **settings) -> dict[tuple[str, str], str]:
    findings = audit_whole_stream(evaluate, tokens, VOCAB, Settings(lot="fixed", cuts=24, **settings), claims)
    return {(finding.rule, finding.detector): finding.verdict for finding in findings}


def failing(evaluate, claims=None) -> set[tuple[str, str]]:
    return {key for key, verdict in found(evaluate, claims).items() if verdict == "fail"}


@pytest.mark.parametrize("evaluate", [stateless, counting, chunked])
def test_an_honest_evaluation_passes_everything(evaluate):
    assert set(found(evaluate).values()) == {"pass"}


@pytest.mark.parametrize("evaluate", [adapts_then_scores, best_of_two_passes, chunk_first_trained])
def test_who_trains_before_it_scores_breaks_c1_and_c3(evaluate):
    assert {rule for rule, _ in failing(evaluate)} == {"C1", "C3"}


def test_reordered_documents_break_c1():
    assert ("C1", "T1") in failing(sorted_by_length)


def test_a_schedule_over_the_stream_s_length_shows_in_its_prefixes_and_nowhere_else():
    assert failing(schedule_over_the_stream) == {("C1", "T6")}


@pytest.mark.parametrize("evaluate", [hashed_ratio, only_if_it_helps])
def test_what_is_no_distribution_breaks_c2_and_only_that(evaluate):
    assert failing(evaluate) == {("C2", "T2b")}


def test_what_does_not_repeat_is_told():
    noise = np.random.default_rng(1)
    assert ("S1", "T17") in failing(lambda tokens: stateless(tokens) + noise.normal(size=len(tokens) - 1) * 1e-6)


@pytest.mark.parametrize("wrong", [lambda nll: nll[:-1], lambda nll: np.r_[nll[:-1], np.nan]])
def test_a_stream_that_is_not_scored_whole_breaks_e1(wrong):
    assert failing(lambda tokens: wrong(stateless(tokens))) == {("E1", "T8")}


def test_who_claims_to_score_documents_alone_is_held_to_it():
    def alone(tokens):
        starts = np.append(np.flatnonzero(tokens == BOS), len(tokens))
        parts = [counting(tokens[a:b]) for a, b in itertools.pairwise(starts)]
        first = np.log(VOCAB)  # of a document's BOS, from nothing
        return np.concatenate([parts[0], *(np.r_[first, part] for part in parts[1:])])

    assert found(alone, Claims(isolates_documents=BOS))["C1", "T9"] == "pass"
    assert found(counting, Claims(isolates_documents=BOS))["C1", "T9"] == "fail"
    assert ("C1", "T9") not in found(counting)


def test_training_before_the_first_price_is_a_breach_however_the_prices_look():
    assert failing(stateless, Claims(trained_before_first_score=3)) == {("C3", "T3")}
    assert found(stateless, Claims(trained_before_first_score=0))["C3", "T3"] == "pass"


def test_a_journal_is_checked_where_there_is_one():
    last = len(TOKENS) - 1
    honest = Claims(journal=[Event("score", 0, 100), Event("reveal", 0, 100), Event("score", 100, last)])
    assert failing(stateless, honest) == set()
    twice = Claims(journal=[Event("score", 0, last), Event("reveal", 0, last), Event("score", 0, last)])
    assert failing(stateless, twice) == {("C4", "T4"), ("E1", "T8")}
