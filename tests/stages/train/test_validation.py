"""Validation scores every held-out target once, however rows fall into batches and ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.bytes import ByteTable
from stages.train import validation
from stages.train.validation import Validation

CPU = torch.device("cpu")
FLAGS = np.zeros(50, dtype=bool)


def table(base: np.ndarray | None = None) -> ByteTable:
    return ByteTable(np.ones(50, dtype=np.int32) if base is None else base, FLAGS, FLAGS)


def own_nats(inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """A made-up loss that tells positions apart: weighted sums of input and target."""
    return inputs_BT.float() + targets_BT.float() / 64


@pytest.mark.parametrize("tokens", [11, 41, 47, 81, 83])
@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_the_mean_is_over_all_whole_rows(tokens: int, batch_rows: int):
    ids = np.random.default_rng(tokens).integers(0, 50, tokens).astype(np.uint16)
    targets = (tokens - 1) // 10 * 10
    expected = [int(ids[i]) + int(ids[i + 1]) / 64 for i in range(targets)]
    found = Validation(ids, 10, batch_rows, table()).measure(own_nats, CPU, 0, 1, lambda: None)
    assert found.loss == pytest.approx(sum(expected) / targets)
    assert found.bpb == pytest.approx(sum(expected) / math.log(2) / targets)


def test_ranks_share_the_rows_without_loss_or_overlap(monkeypatch: pytest.MonkeyPatch):
    held_out = Validation(np.arange(47, dtype=np.uint16), 5, 2, table())
    whole = held_out.measure(own_nats, CPU, 0, 1, lambda: None)
    monkeypatch.setattr(validation, "sum_over_ranks", lambda value, world: value)
    parts = [held_out.measure(own_nats, CPU, rank, 3, lambda: None).loss for rank in range(3)]
    assert sum(parts) == pytest.approx(whole.loss)


def test_bytes_follow_the_table_and_the_previous_token():
    ids = np.array([0, 1, 2, 1, 0, 2, 2], dtype=np.uint16)
    base = np.zeros(50, dtype=np.int32)
    base[:3] = [0, 3, 1]
    space, boundary = FLAGS.copy(), FLAGS.copy()
    space[2], boundary[0] = True, True
    held_out = Validation(ids, 3, 1, ByteTable(base, space, boundary))
    # Targets 1 2 1 0 2 2: 3, 1 + space, 3, 0, 1 (after a boundary), 1 + space.
    assert held_out.targets == 6
    assert held_out.bytes == 3 + 2 + 3 + 0 + 1 + 2


def test_fewer_tokens_than_a_row_are_refused():
    with pytest.raises(ValueError, match="more tokens than one sequence of 10; got 10"):
        Validation(np.arange(10, dtype=np.uint16), 10, 1, table())


def test_it_can_be_stopped_between_batches():
    calls = []
    Validation(np.arange(47, dtype=np.uint16), 5, 2, table()).measure(own_nats, CPU, 0, 1, lambda: calls.append(1))
    assert len(calls) == 5
