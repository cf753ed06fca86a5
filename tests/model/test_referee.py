from __future__ import annotations

import hashlib
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bytes import ByteTable
from model.ledger import Excerpt, Ledger
from model.referee import Referee, RuleBroken
from model.stream import TokenStream
from model.windows import Windows

VOCAB = 16
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 201).astype(np.uint16)
TABLE = ByteTable(np.arange(VOCAB, dtype=np.int32), np.arange(VOCAB) % 3 == 0, np.arange(VOCAB) < 2)


def make(context=16, stride=4, chunk=0, batch_windows=5, tail=False, targets=200, tokens=TOKENS, excerpts=()):
    windows = Windows(targets, context, stride, tail)
    ledger = Ledger(TABLE, context, targets, excerpts)
    return Referee(TokenStream([tokens]), windows, ledger, vocab=VOCAB, batch_windows=batch_windows, chunk=chunk)


@cache
def all_logits(seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((4096, VOCAB), dtype=np.float32))


def logits_for(first_target, count, seed=0):
    """Logits that depend on the target's position only, as those of a scorer without a network."""
    return all_logits(seed)[first_target : first_target + count].clone()


def play(referee, block=0):
    """An honest pass, committing in blocks of `block` targets, or whole handouts."""
    revealed = []
    while referee.open_span() is not None:
        while (handout := referee.take()) is not None:
            for lo in range(handout.lo, handout.hi, block or handout.hi):
                referee.commit(lo, logits_for(lo, min(block or handout.hi, handout.hi - lo)))
        revealed.append(referee.close_span())
    return revealed


def expected_nll():
    logp = torch.log_softmax(logits_for(0, 200), dim=-1).numpy()
    return -logp[np.arange(200), TOKENS[1:]]


@cache
def reference():
    referee = make()
    play(referee)
    return referee


def test_an_honest_pass_sums_the_cross_entropy_of_every_target_once():
    referee = make()
    play(referee)
    account = referee.ledger.account
    assert referee.finished
    assert account.targets == 200
    assert account.nats == pytest.approx(float(expected_nll().sum(dtype=np.float64)), rel=1e-6)
    assert account.bytes == sum(
        int(TABLE.base[y]) + int(TABLE.leading_space[y] and not TABLE.boundary[x])
        for x, y in zip(TOKENS[:-1].tolist(), TOKENS[1:].tolist(), strict=True)
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 80), st.integers(1, 9), st.integers(0, 30))
def test_the_ledger_does_not_depend_on_windows_spans_batches_or_blocks(context, stride, chunk, batch, block):
    referee = make(max(context, stride), stride, chunk, batch)
    play(referee, block)
    assert referee.ledger.sha256 == reference().ledger.sha256
    assert referee.ledger.account.targets == 200
    assert referee.ledger.account.nats == pytest.approx(reference().ledger.account.nats, abs=1e-9)
    assert sorted(referee.ledger.rows) == sorted(reference().ledger.rows)


def test_the_hash_is_over_target_nll_and_log_z_in_stream_order():
    logits = logits_for(0, 200)
    nll = expected_nll().astype("<f4")
    log_z = (logits[torch.arange(200), torch.from_numpy(TOKENS[1:].astype(np.int64))].numpy() + nll).astype("<f4")
    rows = b"".join(int(i).to_bytes(8, "little") + nll[i].tobytes() + log_z[i].tobytes() for i in range(200))
    assert reference().ledger.sha256 == hashlib.sha256(rows).hexdigest()
    np.testing.assert_allclose(log_z, torch.logsumexp(logits, dim=-1).numpy(), atol=1e-6)


def test_inputs_are_the_stream_and_scored_positions_are_the_last_of_each_row():
    referee = make(context=16, stride=4)
    referee.open_span()
    first, second = referee.take(), referee.take()
    assert (first.inputs_BT.shape, first.scored, first.lo, first.hi) == ((1, 16), 16, 0, 16)
    assert (second.inputs_BT.shape, second.scored, second.lo, second.hi) == ((5, 16), 4, 16, 36)
    for row in range(5):
        np.testing.assert_array_equal(second.inputs_BT[row], TOKENS[4 * (row + 1) : 4 * (row + 1) + 16])


def test_a_span_reveals_its_chunk_and_the_chunks_make_the_stream():
    revealed = play(make(context=16, stride=4, chunk=48))
    assert [len(r.tokens) - 1 for r in revealed] == [48, 48, 48, 48, 8]
    for r in revealed:
        np.testing.assert_array_equal(r.tokens, TOKENS[48 * r.index : 48 * r.index + len(r.tokens)])


def test_what_a_scorer_does_to_its_inputs_reaches_neither_the_referee_nor_the_next_inputs():
    tokens = TOKENS.copy()
    referee = make(tokens=tokens, chunk=48)
    while referee.open_span() is not None:
        while (handout := referee.take()) is not None:
            handout.inputs_BT.fill_(1)
            referee.commit(handout.lo, logits_for(handout.lo, handout.hi - handout.lo))
        referee.close_span().tokens.fill_(2)
    np.testing.assert_array_equal(tokens, TOKENS)
    assert referee.ledger.sha256 == reference().ledger.sha256


def opened(**layout):
    referee = make(**layout)
    referee.open_span()
    handout = referee.take()
    return referee, handout


def broken(rule, text):
    return pytest.raises(RuleBroken, match=f"^{rule}: .*{text}")


def test_scoring_a_target_twice_breaks_one_pass():
    referee, handout = opened()
    referee.commit(0, logits_for(0, 10))
    with broken("C4", "a target is scored once, in order; 0 came where 10 was next"):
        referee.commit(0, logits_for(0, 10))
    referee.commit(10, logits_for(10, 6))
    with broken("C4", "target 0 is not open"):
        referee.commit(0, logits_for(0, handout.hi))


def test_skipping_a_target_breaks_coverage():
    referee, _ = opened()
    with broken("E1", "no target is skipped; 3 came where 0 was next"):
        referee.commit(3, logits_for(3, 2))


def test_scoring_out_of_order_breaks_coverage():
    referee, _ = opened()
    second = referee.take()
    with broken("E1", "no target is skipped; 16 came where 0 was next"):
        referee.commit(second.lo, logits_for(second.lo, second.hi - second.lo))


def test_scoring_beyond_the_inputs_handed_out_is_refused():
    referee, handout = opened()
    with broken("C4", "a block ends with its handout, at target 16; this one goes on to 17"):
        referee.commit(0, logits_for(0, handout.hi + 1))


def test_tokens_are_not_revealed_before_the_span_is_scored():
    referee, handout = opened(chunk=48)
    with broken("C3", r"target 0 of 0 \.\. 47 is not"):
        referee.close_span()
    referee.commit(0, logits_for(0, handout.hi))
    with broken("C3", r"target 16 of 0 \.\. 47 is not; score all windows"):
        referee.close_span()


def test_the_next_span_does_not_open_before_the_last_one_is_closed():
    referee, _ = opened(chunk=48)
    with broken("C3", "span 0 is still open"):
        referee.open_span()


def test_nothing_is_handed_out_scored_or_revealed_outside_a_span():
    referee = make()
    with broken("C1", "open the next span first"):
        referee.take()
    with broken("C4", "inside an open span only"):
        referee.commit(0, logits_for(0, 1))
    with broken("C3", "none is open"):
        referee.close_span()


def test_a_span_hands_out_no_input_beyond_its_last_window():
    referee = make(context=16, stride=4, chunk=48)
    span = referee.open_span()
    seen = 0
    while (handout := referee.take()) is not None:
        seen = max(seen, handout.hi)
        referee.commit(handout.lo, logits_for(handout.lo, handout.hi - handout.lo))
    assert seen == span.hi == 48
    assert referee.take() is None


class Disguised(torch.Tensor):
    """A subclass could answer every question about itself as it likes."""


@pytest.mark.parametrize(
    ("logits", "text"),
    [
        (logits_for(0, 16).as_subclass(Disguised), "a block is a plain tensor without gradient; got Disguised"),
        (torch.nn.Parameter(logits_for(0, 16)), "plain tensor without gradient; got Parameter"),
        (logits_for(0, 16).requires_grad_() * 1, "plain tensor without gradient; got Tensor.*inference_mode"),
        (logits_for(0, 16).to_sparse(), "a block is a plain tensor"),
        (logits_for(0, 16).numpy(), "a block is a plain tensor without gradient; got ndarray"),
        (logits_for(0, 16)[:, :15], r"a logit for each of the 16 tokens, \[targets, 16\]; got \[16, 15\]"),
        (logits_for(0, 16)[0], r"a logit for each of the 16 tokens.*got \[16\]"),
        (logits_for(0, 16)[:0], r"a logit for each of the 16 tokens.*got \[0, 16\]"),
        (logits_for(0, 16).long(), "logits are floats; got torch.int64"),
        (logits_for(0, 16).to(torch.complex64), "logits are floats; got torch.complex64"),
    ],
)
def test_a_block_that_is_no_distribution_over_the_vocabulary_is_refused(logits, text):
    referee, _ = opened()
    with broken("C2", text):
        referee.commit(0, logits)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_wherever_they_stand(value):
    referee, _ = opened()
    logits = logits_for(0, 16)
    logits[7, (int(TOKENS[8]) + 1) % VOCAB] = value
    with broken("C2", "logits are finite; those of target 7 are not"):
        referee.commit(0, logits)


@pytest.mark.parametrize("offset", [1e4, 1e8, -1e8])
def test_rounding_of_a_common_offset_gives_no_free_nats(offset):
    """log(sum(exp)) - logit at an offset of 1e8 rounds log 16 = 2.77 down to 0."""
    referee = make()
    while referee.open_span() is not None:
        while (handout := referee.take()) is not None:
            referee.commit(handout.lo, torch.full((handout.hi - handout.lo, VOCAB), offset))
        referee.close_span()
    assert referee.ledger.account.nats == pytest.approx(200 * math.log(VOCAB), rel=1e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(-(2.0**100), 2.0**100), st.floats(0, 1e6), st.integers(0, 99))
def test_the_price_over_all_possible_targets_is_a_probability(offset, spread, seed):
    """Whatever the logits, e^-nll summed over the vocabulary is 1: nobody gains by scale or offset."""
    logits = logits_for(0, 1, seed) * spread + offset
    total = 0.0
    for token in range(VOCAB):
        referee = make(context=1, stride=1, targets=1, tokens=np.array([0, token], dtype=np.uint16))
        referee.open_span()
        referee.take()
        referee.commit(0, logits.clone())
        referee.close_span()
        total += math.exp(-referee.ledger.account.nats)
    assert total == pytest.approx(1, abs=1e-5)


def test_logits_in_half_precision_are_normalised_in_single():
    referee, _ = opened()
    logits = logits_for(0, 16)
    referee.commit(0, logits.bfloat16())
    expected = torch.log_softmax(logits.bfloat16().float(), dim=-1)[torch.arange(16), torch.tensor(TOKENS[1:17]).long()]
    np.testing.assert_array_equal(referee._prices_3N[0, :16], -expected)


def test_the_rescored_tail_is_kept_apart_and_marked_as_a_second_pass():
    referee = make(context=16, stride=4, tail=True)
    play(referee)
    again = referee.ledger.again
    assert again.targets == 3 * 4
    assert again.nats == pytest.approx(3 * float(expected_nll()[-4:].sum()), rel=1e-6)
    assert referee.ledger.sha256 == reference().ledger.sha256
    assert [b["rule"] for b in referee.broken] == ["C4"]
    assert "scored again" in referee.broken[0]["why"]


def test_a_rescored_tail_must_be_scored_whole():
    referee = make(context=16, stride=4, tail=True)
    referee.open_span()
    while (handout := referee.take()).inputs_BT.shape[1] == 16:
        referee.commit(handout.lo, logits_for(handout.lo, handout.hi - handout.lo))
    with broken("E1", "re-scored tail"):
        referee.close_span()


def test_an_exception_hands_over_the_stream_and_marks_the_score():
    referee = make()
    assert referee.broken == []
    tokens = referee.exception(C3="adapts on the whole validation set before scoring it, as PR #398 did")
    np.testing.assert_array_equal(tokens, TOKENS)
    assert referee.broken == [
        {"rule": "C3", "why": "adapts on the whole validation set before scoring it, as PR #398 did"}
    ]
    tokens.fill_(0)
    play(referee)
    assert referee.ledger.sha256 == reference().ledger.sha256


def test_a_pass_is_not_finished_before_its_last_span_is_closed():
    referee = make(chunk=100)
    referee.open_span()
    assert not referee.finished
    play_rest = make(chunk=100)
    play(play_rest)
    assert play_rest.finished
    assert play_rest.open_span() is None


def test_asking_for_more_targets_than_the_stream_has_is_refused():
    with pytest.raises(ValueError, match="a stream of 201 tokens has one target less; asked for 201"):
        make(targets=201)


def test_excerpts_keep_the_cost_of_each_of_their_targets():
    excerpts = [Excerpt(0, 0, 5), Excerpt(1, 40, 60), Excerpt(2, 190, 200)]
    referee = make(chunk=48, excerpts=excerpts)
    play(referee)
    nll = expected_nll()
    for excerpt in referee.ledger.excerpts:
        assert excerpt.ids == TOKENS[excerpt.lo + 1 : excerpt.hi + 1].tolist()
        np.testing.assert_allclose(excerpt.nats, nll[excerpt.lo : excerpt.hi], atol=1e-6)
        bytes_ = TABLE.target_bytes(TOKENS[excerpt.lo : excerpt.hi], TOKENS[excerpt.lo + 1 : excerpt.hi + 1])
        assert excerpt.bytes == bytes_.tolist()


def test_sums_by_position_are_the_account_split_by_position():
    referee = make(context=16, stride=4)
    play(referee)
    ledger = referee.ledger
    assert ledger.position_targets_T.tolist() == [1] * 12 + [(200 - 16) // 4 + 1] * 4
    assert ledger.position_nats_T.sum() == pytest.approx(ledger.account.nats, abs=1e-9)
    assert ledger.position_bytes_T.sum() == ledger.account.bytes
    assert ledger.position_nats_T[:12] == pytest.approx(expected_nll()[:12], abs=1e-6)


def test_sampled_rows_are_the_logits_of_their_targets():
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCAB, 3001).astype(np.uint16)
    referee = make(context=64, stride=64, targets=3000, tokens=tokens)
    play(referee)
    assert 200 < len(referee.ledger.rows) <= 256
    for target, row in referee.ledger.rows.items():
        np.testing.assert_array_equal(row, logits_for(target, 1)[0])


def test_a_ledger_tells_what_was_scored_and_revealed_in_time_order():
    referee = make(context=16, stride=4, chunk=96)
    play(referee)
    events = referee.ledger.events
    assert [(event.kind, event.lo, event.hi) for event in events] == [
        ("score", 0, 96), ("reveal", 0, 96), ("score", 96, 192), ("reveal", 96, 192), ("score", 192, 200),
        ("reveal", 192, 200),
    ]  # fmt: skip
    assert events[-2].sha256 == referee.ledger.sha256
    assert len({event.sha256 for event in events if event.kind == "score"}) == 3


def test_a_ledger_tells_of_second_scores_and_of_what_was_exposed():
    referee = make(context=16, stride=4, tail=True)
    referee.exception(C3="for a test")
    play(referee)
    kinds = [(event.kind, event.lo, event.hi) for event in referee.ledger.events]
    assert kinds == [("expose", 0, 200), ("score", 0, 200), *[("again", 196, 200)] * 3, ("reveal", 0, 200)]


def test_the_head_of_a_ledger_keeps_prices_as_they_are(monkeypatch):
    monkeypatch.setattr("model.ledger.HEAD_TARGETS", 90)
    referee = make(context=16, stride=4, chunk=48)
    play(referee)
    assert referee.ledger.head_N2.shape == (90, 2)
    np.testing.assert_allclose(referee.ledger.head_N2[:, 0], expected_nll()[:90], rtol=1e-6)
