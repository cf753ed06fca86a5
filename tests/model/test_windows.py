from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.windows import Windows, share, target_count

FINEWEB_TARGETS = 62_021_632  # floor((N - 1) / 2048) * 2048 of the challenge's validation split


@st.composite
def layouts(draw: st.DrawFn) -> Windows:
    context = draw(st.integers(1, 40))
    stride = draw(st.integers(1, context))
    return Windows(draw(st.integers(context, 400)), context, stride)


def coverage(windows: Windows, chunk: int, world: int, batch: int) -> np.ndarray:
    """How often each target is scored, by brute force over what every rank is given."""
    count = np.zeros(windows.targets, dtype=int)
    for span in windows.spans(chunk):
        for rank in range(world):
            first, stop = share(span.first, span.stop, rank, world)
            for b in windows.batches(first, stop, batch):
                assert b.stop - b.first <= batch
                for window in range(b.first, b.stop):
                    end = windows.start(window) + b.length
                    assert end <= windows.targets
                    count[end - b.scored : end] += 1
    return count


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layouts(), st.integers(0, 90), st.integers(1, 5), st.integers(1, 7))
def test_each_target_is_scored_once_for_any_length_stride_chunk_and_world(windows, chunk, world, batch):
    assert (coverage(windows, chunk, world, batch) == 1).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts(), st.integers(0, 90))
def test_spans_follow_each_other_and_cover_their_chunks(windows, chunk):
    spans = list(windows.spans(chunk))
    assert [spans[0].first, spans[0].lo] == [0, 0]
    assert [spans[-1].stop, spans[-1].hi] == [windows.count, windows.targets]
    for before, after in pairwise(spans):
        assert (before.stop, before.hi) == (after.first, after.lo)
    for span in spans:
        assert span.chunk.stop <= span.hi, "a chunk is revealed for training only when all of it is scored"
        assert windows.lo(span.first) in span.chunk
        assert windows.lo(span.stop - 1) in span.chunk


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layouts(), st.integers(1, 8))
def test_batches_score_consecutive_targets_from_equal_shapes(windows, size):
    at = 0
    for batch in windows.batches(0, windows.count, size):
        assert batch.lo == at
        for i, window in enumerate(range(batch.first, batch.stop)):
            assert windows.length(window) == batch.length
            assert windows.lo(window) == batch.lo + i * batch.scored
            assert windows.hi(window) == windows.lo(window) + batch.scored
        at = batch.hi
    assert at == windows.targets


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layouts())
def test_positions_say_where_in_its_window_a_target_is_scored(windows):
    expected = np.full(windows.targets, -1)
    for window in range(windows.count):
        for target in range(windows.lo(window), windows.hi(window)):
            expected[target] = target - windows.start(window)
    np.testing.assert_array_equal(windows.positions(np.arange(windows.targets)), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layouts(), st.integers(0, 200))
def test_a_longer_stream_scores_its_beginning_from_the_same_windows(windows, more):
    longer = Windows(windows.targets + more, windows.context, windows.stride)
    for window in range(windows.count):
        assert (longer.start(window), longer.lo(window)) == (windows.start(window), windows.lo(window))
        assert longer.hi(window) >= windows.hi(window)


def test_all_but_the_first_window_give_a_target_the_context_of_at_least_context_minus_stride():
    windows = Windows(1000, 128, 32)
    positions = windows.positions(np.arange(1000))
    assert positions[128:].min() == 96
    np.testing.assert_array_equal(positions[:128], np.arange(128))


@pytest.mark.parametrize(
    ("stride", "count", "with_tail"), [(64, 969_057, 969_088), (32, 1_938_113, 1_938_176), (2048, 30_284, 30_284)]
)
def test_published_counts_of_windows_come_out(stride, count, with_tail):
    assert Windows(FINEWEB_TARGETS, 2048, stride).count == count
    assert Windows(FINEWEB_TARGETS, 2048, stride, rescored_tail=True).total == with_tail


def test_published_counts_of_chunks_come_out():
    spans = list(Windows(FINEWEB_TARGETS, 2048, 64).spans(32_768))
    assert len(spans) == 1_893
    assert len(spans[-1].chunk) == 24_576
    assert sum(span.stop - span.first for span in spans) == 969_057


@pytest.mark.parametrize(("stride", "extra"), [(64, 1_984), (32, 2_016)])
def test_the_published_tail_scores_the_last_stride_again_in_each_truncated_window(stride, extra):
    windows = Windows(8 * 2048, 2048, stride, rescored_tail=True)
    tail = list(windows.tail())
    assert sum(batch.scored for batch in tail) == extra
    assert {(batch.lo, batch.hi) for batch in tail} == {(windows.targets - stride, windows.targets)}
    # The published rule, written out: windows start below the end; all but the first score their last `stride`.
    starts = [s for s in range(0, windows.targets, stride) if s + 2048 > windows.targets]
    assert [(windows.start(b.first), b.length) for b in tail] == [(s, windows.targets - s) for s in starts]


def test_targets_are_all_but_the_first_token_unless_asked_otherwise():
    assert target_count(1001) == 1000
    assert target_count(1001, context=64) == 960
    assert target_count(1001, limit=500) == 500
    assert target_count(1001, context=64, limit=500) == 448
    assert target_count(0) == target_count(1) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((100, 128, 64), r"one window of 128 targets must fit.*has 100.*lower context_tokens"),
        ((100, 32, 33), r"stride is 1 \.\. context 32 tokens; got 33"),
        ((100, 32, 0), r"stride is 1 \.\. context 32 tokens; got 0"),
        ((100, 32, 16, True), r"stride divides targets and context; got stride 16, 100 targets.*drop the partial row"),
    ],
)
def test_windows_that_cannot_be_are_refused_with_what_to_do(arguments, text):
    with pytest.raises(ValueError, match=text):
        Windows(*arguments)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 50), st.integers(0, 200), st.integers(1, 9))
def test_shares_are_contiguous_complete_and_even(first, size, world):
    shares = [share(first, first + size, rank, world) for rank in range(world)]
    assert shares[0][0] == first
    assert shares[-1][1] == first + size
    assert all(a[1] == b[0] for a, b in pairwise(shares))
    sizes = [stop - begin for begin, stop in shares]
    assert max(sizes) - min(sizes) <= 1
