from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.ngram import NGrams

CPU = torch.device("cpu")
METHOD_C = {"discount": 0.0, "escape": 1.0}


def counted(tokens, vocab, max_order, cuts=(), **smoothing):
    ngrams = NGrams(vocab, max_order, CPU, **smoothing)
    for chunk in np.split(np.asarray(tokens, dtype=np.int64), cuts):
        ngrams.update(torch.from_numpy(chunk))
    return ngrams


def predict(ngrams, context):
    """The distribution after the last token of a context."""
    return ngrams.distribution(ngrams.contexts(torch.tensor([context]), 1))[0].numpy()


def naive(history, context, vocab, discount, escape):
    """A few lines over dictionaries: p of every token after a context, counted in a list."""
    length = len(context)
    follow = Counter(
        history[i + length] for i in range(len(history) - length) if tuple(history[i : i + length]) == context
    )
    lower = naive(history, context[1:], vocab, discount, escape) if length else np.full(vocab, 1 / vocab)
    if not follow:
        return lower
    p = (discount + escape) * len(follow) * lower
    for token, count in follow.items():
        p[token] += count - discount
    return p / (follow.total() + escape * len(follow))


streams = st.integers(2, 5).flatmap(
    lambda vocab: st.tuples(st.just(vocab), st.lists(st.integers(0, vocab - 1), min_size=1, max_size=60))
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(streams, st.integers(2, 6), st.sampled_from([(0.75, 0.0), (0.0, 1.0), (0.4, 0.3)]), st.data())
def test_a_dictionary_of_counts_gives_the_same_distribution(stream, max_order, smoothing, data):
    vocab, tokens = stream
    discount, escape = smoothing
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    context = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=8))
    ngrams = counted(tokens, vocab, max_order, cuts, discount=discount, escape=escape)
    expected = naive(tokens, tuple(context[-(max_order - 1) :]), vocab, discount, escape)
    np.testing.assert_allclose(predict(ngrams, context), expected, atol=2e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(2, 9), st.sampled_from([{}, METHOD_C]))
def test_every_distribution_sums_to_one_and_leaves_no_token_without_mass(seed, vocab, max_order, smoothing):
    rng = np.random.default_rng(seed)
    tokens = (rng.zipf(1.3, 2000) % vocab).astype(np.int64)
    ngrams = counted(tokens, vocab, max_order, [700, 1400], **smoothing)
    seen_BT = torch.from_numpy(tokens[-96:].reshape(4, 24))
    unseen_BT = torch.from_numpy(rng.integers(0, vocab, (4, 24)))
    for inputs_BT in (seen_BT, unseen_BT):
        p_KV = ngrams.distribution(ngrams.contexts(inputs_BT, 24))
        np.testing.assert_allclose(p_KV.sum(-1, dtype=torch.float64), 1, atol=1e-6)
        assert (p_KV > 0).all()


def test_how_the_stream_is_cut_into_chunks_changes_nothing():
    tokens = np.random.default_rng(0).integers(0, 7, 500)
    inputs = torch.from_numpy(tokens[100:164].reshape(4, 16))
    whole, cut, single = (counted(tokens, 7, 5, cuts) for cuts in ([], [1, 2, 3, 250, 499], range(1, 500)))
    expected = whole.distribution(whole.contexts(inputs, 12))
    for other in (cut, single):
        torch.testing.assert_close(other.distribution(other.contexts(inputs, 12)), expected, rtol=0, atol=1e-6)
        assert (other.entries, other.tokens) == (whole.entries, 500)


def test_method_c_of_a_hand_example():
    """After a b a b a c: 'a' is followed by b b c, so p(b | a) = (2 + 2 q(b)) / (3 + 2), with q the order-0 shares."""
    ngrams = counted([0, 1, 0, 1, 0, 2], 4, 2, **METHOD_C)
    q = [(3 + 3 / 4) / 9, (2 + 3 / 4) / 9, (1 + 3 / 4) / 9, (3 / 4) / 9]
    expected = [(count + 2 * lower) / 5 for count, lower in zip([0, 2, 1, 0], q, strict=True)]
    np.testing.assert_allclose(predict(ngrams, [3, 0]), expected, atol=1e-6)


def test_a_prediction_depends_on_the_last_tokens_of_its_own_window_only():
    tokens = np.random.default_rng(0).integers(0, 9, 3000)
    ngrams = counted(tokens, 9, 4)
    inputs = torch.from_numpy(tokens[:40].reshape(2, 20))
    before = ngrams.distribution(ngrams.contexts(inputs, 20)).view(2, 20, 9)
    changed = inputs.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 9
    after = ngrams.distribution(ngrams.contexts(changed, 20)).view(2, 20, 9)
    differs = (before != after).any(-1)
    assert differs[0].nonzero().flatten().tolist() == [8, 9, 10]  # a context has three tokens
    assert not differs[1].any()


def test_scoring_only_the_last_positions_gives_the_same_rows():
    tokens = np.random.default_rng(0).integers(0, 9, 3000)
    ngrams = counted(tokens, 9, 6)
    inputs = torch.from_numpy(tokens[:60].reshape(3, 20))
    rows = ngrams.distribution(ngrams.contexts(inputs, 20)).view(3, 20, 9)
    for scored in (1, 4, 17, 19):
        last = ngrams.distribution(ngrams.contexts(inputs, scored)).view(3, scored, 9)
        torch.testing.assert_close(last, rows[:, -scored:], rtol=0, atol=0)


def test_long_ngrams_over_a_large_vocabulary_do_not_collide():
    """Eight tokens of 11 bits fit no machine word: contexts that differ in their oldest token only stay apart."""
    tail = [2_000, 1, 1_500, 17, 2_047, 0, 3]
    tokens = [*[7, *tail, 100] * 3, *[8, *tail, 200] * 3]
    ngrams = NGrams(2_048, 9, CPU)
    ngrams.update(torch.tensor(tokens))
    levels = ngrams._levels
    nodes = ngrams.contexts(torch.tensor([[7, *tail], [8, *tail]]), 1)
    assert nodes[7][0] != nodes[7][1]
    for level, node in zip(levels, nodes, strict=True):
        for row in range(2):
            begin, end = (int(torch.searchsorted(level.runs[0].keys_M, (node[row] + i) * 2_048)) for i in (0, 1))
            successors = (level.runs[0].keys_M[begin:end] % 2_048).tolist()
            longest = level is levels[-1]
            assert successors == ([[100], [200]][row] if longest else [100, 200])


def test_many_small_chunks_stay_in_few_runs_of_distinct_sorted_keys():
    tokens = np.random.default_rng(0).integers(0, 50, 4000)
    ngrams = counted(tokens, 50, 4, range(20, 4000, 20))
    for level in ngrams._levels:
        assert len(level.runs) <= 8
        keys = torch.cat([run.keys_M for run in level.runs])
        assert len(keys.unique()) == len(keys) == level.nodes
        assert all((run.keys_M.diff() > 0).all() for run in level.runs)
        counts = sum(int(run.counts_M.sum()) for run in level.runs)
        assert counts == int(level.totals.values.sum())
    assert ngrams.memory_bytes < 40 * ngrams.entries


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_order": 1}, "its order is 2 or more; got 1"),
        ({"max_order": 3, "discount": 1.0}, "some mass is left to shorter contexts"),
        ({"max_order": 3, "discount": 0.0}, "some mass is left to shorter contexts"),
        ({"max_order": 3, "escape": -1.0}, "some mass is left to shorter contexts"),
    ],
)
def test_counts_without_a_distribution_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        NGrams(8, device=CPU, **options)
