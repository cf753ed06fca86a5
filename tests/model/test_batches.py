"""The training order: exactly the challenge's spans, however many ranks read them."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches import Spans, TrainStream, prefetch, stream_batches
from model.shards import write_shard

VOCAB = 1000


def write_counting_shards(folder: Path, *sizes: int) -> list[Path]:
    """Shards whose ids count 0, 1, 2, ... over all of them, so that an id is its own position."""
    paths, first = [], 0
    for index, size in enumerate(sizes):
        paths.append(folder / f"{index:05d}.bin")
        write_shard(paths[-1], np.arange(first, first + size, dtype=np.uint16))
        first += size
    return paths


def published_order(tokens: list[int], world: int, local: int, rank: int, calls: int) -> list[list[int]]:
    """An independent reading of the rule: a cursor takes world x (local + 1) tokens a call, wrapping at the end."""
    cursor, spans = 0, []
    for _ in range(calls):
        taken = [tokens[(cursor + i) % len(tokens)] for i in range(world * (local + 1))]
        cursor += world * (local + 1)
        spans.append(taken[rank * (local + 1) : (rank + 1) * (local + 1)])
    return spans


def spans_of(stream: TrainStream, **changes: int) -> Spans:
    return Spans(**{"stream": stream, "sequence_tokens": 4, "microbatch_tokens": 8, "batch_tokens": 32, **changes})


def test_spans_follow_the_published_loader_over_shard_borders_and_wraps(tmp_path: Path):
    stream = TrainStream(write_counting_shards(tmp_path, 30, 1, 50, 20), VOCAB, held_out=7)
    for rank in range(2):
        spans = spans_of(stream, rank=rank, world=2)
        expected = published_order(list(range(94)), world=2, local=8, rank=rank, calls=40)
        found = [spans.load(step, micro_step) for step in range(20) for micro_step in range(2)]
        for (inputs_BT, targets_BT), span in zip(found, expected, strict=True):
            assert inputs_BT.flatten().tolist() == span[:-1]
            assert targets_BT.flatten().tolist() == span[1:]
            assert inputs_BT.shape == (2, 4)
            assert inputs_BT.dtype == torch.int64


@settings(max_examples=40, deadline=None)
@given(world=st.sampled_from([1, 2, 4, 8]), step=st.integers(0, 10**7), micro_step=st.integers(0, 7))
def test_one_process_that_accumulates_reads_what_many_ranks_read(world: int, step: int, micro_step: int):
    class Endless(TrainStream):
        def __init__(self) -> None:
            self.tokens = 10**10

    one = spans_of(Endless(), batch_tokens=64)
    many = [spans_of(Endless(), batch_tokens=64, rank=rank, world=world) for rank in range(world)]
    span = step * 8 + micro_step
    reader = many[span % world]
    assert reader.start(span // 8, span % 8 // world) == one.start(step, micro_step)
    assert {s.accumulation for s in many} == {8 // world}


def test_training_never_reads_the_held_out_tokens(tmp_path: Path):
    stream = TrainStream(write_counting_shards(tmp_path, 40, 10), VOCAB, held_out=15)
    assert stream.held_out().tolist() == list(range(35, 50))
    seen = {int(i) for step in range(50) for t in spans_of(stream).load(step, 0) for i in t.flatten()}
    assert seen == set(range(35))


def test_a_sequence_longer_than_the_data_is_refused(tmp_path: Path):
    stream = TrainStream(write_counting_shards(tmp_path, 100), VOCAB)
    spans_of(stream, sequence_tokens=99, microbatch_tokens=99, batch_tokens=99)
    with pytest.raises(ValueError, match=r"sequence of 100 inputs.*got 100 tokens; lower train.sequence_tokens"):
        spans_of(stream, sequence_tokens=100, microbatch_tokens=100, batch_tokens=100)


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path):
    stream = TrainStream(write_counting_shards(tmp_path, 100), VOCAB)
    with pytest.raises(ValueError, match=r"microbatch_tokens x ranks = 8 x 3; got 32"):
        spans_of(stream, world=3)


def test_more_validation_than_data_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"got 100 of 100; lower train.validation_tokens"):
        TrainStream(write_counting_shards(tmp_path, 60, 40), VOCAB, held_out=100)


def test_an_id_outside_the_vocabulary_is_found_when_its_shard_is_read(tmp_path: Path):
    stream = TrainStream(write_counting_shards(tmp_path, 40, 40), vocab=60)
    assert stream.read(0, 40).max() == 39
    with pytest.raises(ValueError, match=r"00001.bin has 60 at token 20"):
        stream.read(39, 2)


def test_a_truncated_shard_is_found_before_the_first_step(tmp_path: Path):
    paths = write_counting_shards(tmp_path, 40, 40)
    paths[1].write_bytes(paths[1].read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"00001.bin .*truncated"):
        TrainStream(paths, VOCAB)


def test_few_shards_are_mapped_at_a_time(tmp_path: Path):
    stream = TrainStream(write_counting_shards(tmp_path, *[20] * 30), VOCAB)
    assert stream.read(0, 600).tolist() == list(range(600))
    assert len(stream._open) <= 2


def test_batches_start_at_any_step(tmp_path: Path):
    spans = spans_of(TrainStream(write_counting_shards(tmp_path, 100), VOCAB))
    whole = list(islice(stream_batches(spans, torch.device("cpu")), 12))
    resumed = list(islice(stream_batches(spans, torch.device("cpu"), first_step=2), 4))
    for (a, b), (c, d) in zip(whole[8:], resumed, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_prefetching_keeps_order_and_stops_its_thread():
    ahead = prefetch(range(1000), depth=3)
    assert list(islice(ahead, 10)) == list(range(10))
    ahead.close()
    assert list(prefetch(range(5), depth=2)) == list(range(5))
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_an_error_of_the_reader_surfaces_at_its_item():
    def items():
        yield 1
        raise ValueError("broken shard")

    ahead = prefetch(items(), depth=4)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken shard"):
        next(ahead)
