from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bytes import ByteTable
from model.hashed_ngram import HashedNGrams
from model.ledger import Ledger
from model.mixer import Blend, Gate, PublishedMixer
from model.ngram import NGrams
from model.referee import Handout, Referee, RuleBroken
from model.score import score
from model.stream import TokenStream
from model.windows import Windows

CPU = torch.device("cpu")
VOCAB, CONTEXT, STRIDE, CHUNK = 32, 16, 4, 48
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 257).astype(np.uint16)
TABLE = ByteTable(np.full(VOCAB, 2, np.int32), np.zeros(VOCAB, bool), np.zeros(VOCAB, bool))
LOGITS_VV = torch.from_numpy(np.random.default_rng(1).standard_normal((VOCAB, VOCAB), dtype=np.float32))
PUBLISHED = Gate(0.2, 0.55, 3.0)


def network(inputs_BT, scored):
    """A bigram model: enough to stand for a network, and causal at sight."""
    return LOGITS_VV[inputs_BT[:, -scored:]]


def legal(referee, gate=PUBLISHED, active_after=0, max_order=4, **smoothing):
    return Blend(NGrams(VOCAB, max_order, CPU, **smoothing), gate, active_after=active_after)


def published(referee, gate=PUBLISHED, active_after=0, buckets=64):
    return PublishedMixer(referee, HashedNGrams(VOCAB, 5, buckets, 2, CPU), gate, active_after=active_after)


def none(referee):
    return None


def play(tokens=TOKENS, make=legal, temperature=1.0, batch_windows=6, **options):
    windows = Windows(len(tokens) - 1, CONTEXT, STRIDE)
    ledger = Ledger(TABLE, CONTEXT, windows.targets)
    referee = Referee(TokenStream([tokens]), windows, ledger, vocab=VOCAB, batch_windows=batch_windows, chunk=CHUNK)
    mixer = make(referee, **options)
    score(referee, network, mixer=mixer, temperature=temperature)
    return referee, mixer


def rows(referee):
    return np.stack([referee.ledger.rows[target] for target in range(referee.windows.targets)])


def nll(tokens=TOKENS, **options):
    """The price of every target, in stream order."""
    priced = []
    add = Ledger.add

    def spy(self, nll_N, *rest):
        priced.append(nll_N.copy())
        add(self, nll_N, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "add", spy)
        play(tokens, **options)
    return np.concatenate(priced)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.sampled_from([{}, {"discount": 0.0, "escape": 1.0, "max_order": 2}]),
    st.floats(0.01, 0.5),
    st.floats(0, 0.45),
    st.sampled_from([1e-3, 1.0, 40.0]),
)
def test_a_blend_is_a_distribution_whatever_the_network_says(smoothing, base, span, scale):
    mixer = legal(None, Gate(base, span, 2.0), **smoothing)
    mixer._ngrams.update(torch.from_numpy(TOKENS.astype(np.int64)))
    inputs = torch.from_numpy(TOKENS[:64].reshape(4, 16).astype(np.int64))
    logits = network(inputs, 16).flatten(0, 1) * scale
    logp = mixer.blend(Handout(inputs, 16, 0, 64), logits)
    np.testing.assert_allclose(logp.double().exp().sum(-1), 1, atol=1e-5)
    assert logp.isfinite().all()


def test_a_blend_is_the_weighted_sum_of_network_and_expert():
    mixer = legal(None, Gate(0.3, 0.0))
    mixer._ngrams.update(torch.from_numpy(TOKENS.astype(np.int64)))
    inputs = torch.from_numpy(TOKENS[:16].reshape(1, 16).astype(np.int64))
    logits = network(inputs, 16)[0]
    expert = mixer._ngrams.distribution(mixer._ngrams.contexts(inputs, 16))
    expected = 0.7 * logits.softmax(-1) + 0.3 * expert
    torch.testing.assert_close(mixer.blend(Handout(inputs, 16, 0, 16), logits).exp(), expected)


def test_an_expert_that_is_no_distribution_is_stopped():
    class Greedy(NGrams):
        def distribution(self, contexts):
            return super().distribution(contexts) * 1.001

    with pytest.raises(RuleBroken, match=r"C2: an expert's distribution sums to 1; one of these is off by 1\.0e-03"):
        play(make=lambda referee: Blend(Greedy(VOCAB, 3, CPU), PUBLISHED))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 250), st.sampled_from([legal, published]))
def test_changing_later_tokens_changes_no_earlier_price(cut, make):
    other = TOKENS.copy()
    other[cut:] = (other[cut:] + 7) % VOCAB
    before, after = nll(make=make), nll(other, make=make)
    # Target i is token i + 1: tokens from `cut` on are targets from cut - 1 on.
    np.testing.assert_array_equal(before[: cut - 1], after[: cut - 1])
    assert not np.array_equal(before[cut - 1 :], after[cut - 1 :])


def test_a_chunk_is_learned_from_once_it_is_scored_and_not_before():
    plain, blended = rows(play(make=none)[0]), rows(play()[0])
    np.testing.assert_array_equal(plain[:CHUNK], blended[:CHUNK])
    assert (plain[CHUNK:] != blended[CHUNK:]).any(axis=1).all()


@pytest.mark.parametrize("options", [{}, {"max_order": 2, "discount": 0.0, "escape": 1.0}, {"gate": Gate(0.3, 0.0)}])
def test_a_stream_that_repeats_itself_gets_cheaper(options):
    tokens = np.tile(TOKENS[:50], 10)
    without, blended = nll(tokens, make=none).sum(), nll(tokens, **options).sum()
    assert blended < without - 100


def test_the_batch_size_changes_no_price_beyond_rounding():
    np.testing.assert_allclose(nll(batch_windows=1), nll(batch_windows=7), atol=2e-6)


def test_a_legal_score_breaks_no_rule_and_counts_the_positions_that_it_mixed():
    referee, mixer = play()
    assert referee.broken == []
    assert mixer.mixed_positions == 256 - CHUNK
    assert play(active_after=100)[1].mixed_positions == 256 - 3 * CHUNK  # silent while 49 and 97 tokens are counted
    assert play(active_after=10_000)[1].mixed_positions == 0


def test_the_published_mixer_carries_rule_c2_in_its_score():
    referee, mixer = play(make=published, active_after=1)
    assert [broken["rule"] for broken in referee.broken] == ["C2"]
    assert "does not sum to 1" in referee.broken[0]["why"]
    assert mixer.mixed_positions == 256 - CHUNK
    assert referee.finished


def test_the_published_mixer_prices_noise_below_what_any_code_can_reach():
    """Noise over 256 tokens costs ln 256 = 5.5 nats a token, in any code; in overfull tables it seems to cost half."""
    vocab, noise = 256, np.random.default_rng(3).integers(0, 256, 6001).astype(np.uint16)
    table = ByteTable(np.ones(vocab, np.int32), np.zeros(vocab, bool), np.zeros(vocab, bool))
    windows = Windows(6000, 16, 8)
    referee = Referee(TokenStream([noise]), windows, Ledger(table, 16, 6000), vocab=vocab, chunk=500)
    mixer = PublishedMixer(referee, HashedNGrams(vocab, 10, 256, 2, CPU), PUBLISHED, active_after=500)
    score(referee, lambda inputs, scored: torch.zeros(len(inputs), scored, vocab), mixer=mixer)
    per_token = referee.ledger.account.nats / 6000
    assert per_token < 0.5 * np.log(vocab)


def test_a_price_without_a_distribution_is_refused_unless_asked_for():
    windows = Windows(256, CONTEXT, STRIDE)
    referee = Referee(TokenStream([TOKENS]), windows, Ledger(TABLE, CONTEXT, 256), vocab=VOCAB, chunk=CHUNK)
    referee.open_span()
    handout = referee.take()
    logits = network(handout.inputs_BT, handout.scored).flatten(0, 1)
    with pytest.raises(RuleBroken, match="C2: a price comes from a whole distribution"):
        referee.commit_unnormalised(0, logits, lambda targets: torch.zeros(len(targets)))
    assert referee.broken == []
    referee.permit_unnormalised("because it is asked for")
    with pytest.raises(RuleBroken, match=r"C2: each target has one price; got \[16, 2\] for \[16\]"):
        referee.commit_unnormalised(0, logits, lambda targets: torch.zeros(len(targets), 2))
    with pytest.raises(RuleBroken, match=r"C2: .* those of target 3 are not"):
        referee.commit_unnormalised(
            0, logits, lambda targets: torch.zeros(len(targets)).index_fill(0, torch.tensor([3]), torch.nan)
        )
    referee.commit_unnormalised(0, logits, lambda targets: torch.full((len(targets),), 0.5))
    with pytest.raises(RuleBroken, match="C4"):
        referee.commit_unnormalised(0, logits, lambda targets: torch.zeros(len(targets)))


def test_a_gate_rises_with_the_entropy_of_the_network():
    """0.20 + 0.55 * sigmoid(2 (H - 3)): over 1,024 equal tokens H is 6.93 nats, over one it is 0."""
    logp = torch.log_softmax(torch.stack((torch.zeros(1024), 100.0 * (torch.arange(1024) == 5))), dim=-1)
    low, high = 0.2 + 0.55 / (1 + np.exp(6)), 0.2 + 0.55 / (1 + np.exp(-2 * (np.log(1024) - 3)))
    np.testing.assert_allclose(PUBLISHED(logp), [high, low], atol=1e-6)
    np.testing.assert_allclose(Gate(0.1, 0.0)(logp), 0.1)


@pytest.mark.parametrize("gate", [(0.5, 0.5, 3.0), (0.0, 0.0, 3.0), (-0.1, 0.5, 3.0), (0.5, -0.1, 3.0)])
def test_a_weight_outside_of_zero_and_one_is_refused(gate):
    with pytest.raises(ValueError, match="an expert's weight lies between 0 and 1"):
        Gate(*gate)


@pytest.mark.parametrize("make", [none, published, legal])
def test_temperature_divides_the_logits_before_anything_else(make):
    cooled = nll(make=make, temperature=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.LOGITS_VV", LOGITS_VV / 0.5)
        np.testing.assert_array_equal(nll(make=make), cooled)
