"""The challenge's training order: contiguous spans of the token stream, no shuffle, wrapping at the end.

Every micro-step takes `world` neighbouring spans of `microbatch_tokens + 1` tokens; rank r reads the r-th. Inputs are
the span without its last token, targets the span without its first, so one token per span is never an input. The start
of a span is a pure function of (step, micro-step, rank, world): one process with eight accumulations reads exactly the
spans of eight ranks with one. Documents are not separated. Data order does not depend on the seed.

Shapes: B sequences, T tokens per sequence.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.shards import open_shard, read_count

Batch = tuple[Tensor, Tensor]  # inputs_BT, targets_BT: int64
Item = TypeVar("Item")

_OPEN_SHARDS = 2  # a span rarely crosses more than one border; closing the others bounds the mapped memory
_PREFETCHED = 8  # micro-batches that wait in pinned memory


class TrainStream:
    """All shards, in the given order, as one stream of ids without its last `held_out` tokens.

    Headers and sizes are verified at once, ids when a shard is first read. Raises ValueError.
    """

    def __init__(self, shards: Sequence[Path], vocab: int, held_out: int = 0) -> None:
        self._shards = tuple(shards)
        self._vocab = vocab
        counts = [read_count(path) for path in self._shards]
        self._ends = np.cumsum([0, *counts])[1:].tolist()
        total = sum(counts)
        if held_out >= total:
            raise ValueError(
                f"held-out validation tokens are fewer than the train tokens; got {held_out:,} of {total:,}; "
                "lower train.validation_tokens or give more data"
            )
        self._held_out = held_out
        self.tokens = total - held_out
        """Length of the stream that training reads and wraps at."""
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` ids from position `start` of the training stream, wrapping at its end: uint16 [length]."""
        pieces: list[np.ndarray] = []
        position = start % self.tokens
        while length:
            piece = self._contiguous(position, min(length, self.tokens - position))
            pieces.append(piece)
            length -= len(piece)
            position = (position + len(piece)) % self.tokens
        return np.concatenate(pieces)

    def held_out(self) -> np.ndarray:
        """The tokens at the end of the last shard(s) that training never reads: uint16 [held_out]."""
        pieces: list[np.ndarray] = [np.empty(0, dtype=np.uint16)]
        position, end = self.tokens, self.tokens + self._held_out
        while position < end:
            pieces.append(self._contiguous(position, end - position))
            position += len(pieces[-1])
        return np.concatenate(pieces)

    def _contiguous(self, position: int, length: int) -> np.ndarray:
        """At most `length` ids from `position`: what lies in that position's shard."""
        index = int(np.searchsorted(self._ends, position, side="right"))
        offset = position - (self._ends[index - 1] if index else 0)
        return self._shard(index)[offset : offset + length]

    def _shard(self, index: int) -> np.ndarray:
        if index not in self._open:
            self._open[index] = open_shard(self._shards[index], self._vocab)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(index)
        return self._open[index]


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Which tokens a rank trains on, and in which order. Raises ValueError for what does not fit the stream."""

    stream: TrainStream
    sequence_tokens: int
    microbatch_tokens: int  # inputs per forward pass and rank
    batch_tokens: int  # inputs per optimizer step over all ranks
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.stream.tokens <= self.sequence_tokens:
            raise ValueError(
                f"a sequence of {self.sequence_tokens:,} inputs and its last target fit into the training data; got "
                f"{self.stream.tokens:,} tokens; lower train.sequence_tokens or give more data"
            )
        if self.microbatch_tokens % self.sequence_tokens:
            raise ValueError(
                f"microbatch_tokens is a multiple of sequence_tokens {self.sequence_tokens}; "
                f"got {self.microbatch_tokens}"
            )
        if self.batch_tokens % (self.microbatch_tokens * self.world):
            raise ValueError(
                f"batch_tokens is a multiple of microbatch_tokens x ranks = {self.microbatch_tokens} x {self.world}; "
                f"got {self.batch_tokens}; change train.batch_tokens or train.microbatch_tokens"
            )

    @property
    def accumulation(self) -> int:
        """Micro-steps per optimizer step."""
        return self.batch_tokens // (self.microbatch_tokens * self.world)

    def start(self, step: int, micro_step: int) -> int:
        """Position of this rank's span in the endless stream, before wrapping."""
        span = (step * self.accumulation + micro_step) * self.world + self.rank
        return span * (self.microbatch_tokens + 1)

    def load(self, step: int, micro_step: int) -> Batch:
        """inputs_BT and targets_BT of one micro-step, on the CPU."""
        ids = self.stream.read(self.start(step, micro_step), self.microbatch_tokens + 1)
        span = torch.from_numpy(ids.astype(np.int64))
        return span[:-1].view(-1, self.sequence_tokens), span[1:].view(-1, self.sequence_tokens)


def stream_batches(spans: Spans, device: torch.device, first_step: int = 0) -> Iterator[Batch]:
    """Every micro-batch from `first_step` on, on `device`. For a GPU they are read ahead and copied asynchronously."""
    loaded = (spans.load(step, micro_step) for step in count(first_step) for micro_step in range(spans.accumulation))
    if device.type == "cpu":  # a reader thread would only take time from the arithmetic
        yield from loaded
        return
    pinned = ((inputs_BT.pin_memory(), targets_BT.pin_memory()) for inputs_BT, targets_BT in loaded)
    for inputs_BT, targets_BT in prefetch(pinned, _PREFETCHED):
        yield inputs_BT.to(device, non_blocking=True), targets_BT.to(device, non_blocking=True)


def prefetch(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items in the same order, made in one thread up to `depth` ahead. An error surfaces at its item."""
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def offer(item: Item | None, error: BaseException | None) -> bool:
        while not closed.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not offer(item, None):
                    return
            offer(None, StopIteration())
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that asked
            offer(None, error)

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType] - None only beside an error
    finally:
        closed.set()
        thread.join()
