"""Loss on tokens that training never reads: mean nats per token and bits per byte, over non-overlapping rows.

Letters: N rows, B rows per batch, T tokens per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.bytes import ByteTable
from stages.train.ranks import sum_over_ranks

TokenNats = Callable[[Tensor, Tensor], Tensor]
"""(inputs_BT, targets_BT) -> nats_BT in fp32."""


class Score(NamedTuple):
    """A validation result."""

    loss: float  # mean nats per target
    bpb: float  # bits per byte of text


class Validation:
    """Held-out ids as rows of inputs and targets, with the bytes that the targets stand for."""

    def __init__(self, ids: np.ndarray, sequence_tokens: int, batch_rows: int, table: ByteTable) -> None:
        targets = (len(ids) - 1) // sequence_tokens * sequence_tokens
        if targets < 1:
            raise ValueError(
                f"validation needs more tokens than one sequence of {sequence_tokens:,}; got {len(ids):,}; "
                "raise train.validation_tokens, or set it to 0"
            )
        ids = ids[: targets + 1].astype(np.int64)
        self.targets = targets
        self.bytes = int(table.target_bytes(ids[:-1], ids[1:]).sum())
        self._inputs_NT = torch.from_numpy(ids[:-1]).view(-1, sequence_tokens)
        self._targets_NT = torch.from_numpy(ids[1:]).view(-1, sequence_tokens)
        self._batch_rows = batch_rows

    @torch.no_grad()
    def measure(
        self, nats: TokenNats, device: torch.device, rank: int, world: int, between: Callable[[], object]
    ) -> Score:
        """Score every row once, batches dealt out over ranks; `between` is called before each batch."""
        total = torch.zeros((), dtype=torch.float64, device=device)
        for first in range(rank * self._batch_rows, len(self._inputs_NT), world * self._batch_rows):
            between()
            inputs_BT, targets_BT = (
                rows[first : first + self._batch_rows].to(device) for rows in (self._inputs_NT, self._targets_NT)
            )
            rows = len(inputs_BT)
            # A last, smaller batch is filled up, because another shape would be compiled anew.
            padding = (0, 0, 0, self._batch_rows - rows)
            nats_BT = nats(functional.pad(inputs_BT, padding), functional.pad(targets_BT, padding))
            total += nats_BT[:rows].double().sum()
        total_nats = float(sum_over_ranks(total, world))
        return Score(total_nats / self.targets, total_nats / math.log(2) / max(self.bytes, 1))
