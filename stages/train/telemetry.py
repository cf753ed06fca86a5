"""What each step measured, fetched without stalling the device, and the guard against NaN.

A GPU works behind the host: rows are copied to pinned memory asynchronously and read `LAG` steps later, which also
keeps the host from running ahead of the clock that it measures. On a CPU they are read at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.contract import StageError

LAG = 2  # steps that may be in flight on a GPU


class Measured(NamedTuple):
    """One finished step."""

    step: int  # updates done, this one included
    scale: float  # learning-rate multiplier of the update
    loss: float  # mean nats per token of its batch, before the update
    objective: float  # what the update minimised; the loss, unless that is weighted or has other terms
    gradient_norm: float  # global, before clipping


class Telemetry:
    """A queue of measurements; `names` are the parameters, in the order of the norms that `push` gets."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        losses = ["the loss itself", "the objective"]
        self._labels = [f"parameter {n}" for n in names] + losses + [f"gradient of {n}" for n in names]
        self._loss_at = len(names)
        self._lag = LAG if device.type == "cuda" else 0
        self._pending: deque[tuple[int, float, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, step: int, scale: float, losses: Tensor, parameter_norms: Tensor, gradient_norms: Tensor) -> None:
        """Queue one step: (loss, objective) [2], and the norms of parameters (before the update) and gradients [P]."""
        row = torch.cat((parameter_norms, losses, gradient_norms))
        event = None
        if row.device.type == "cuda":
            host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
            row = host.copy_(row, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, scale, row, event))

    def ready(self, everything: bool = False) -> Iterator[Measured]:
        """Take out the steps that are done; with `everything`, wait for those in flight too.

        Raises StageError at the first step that is not finite, naming the first tensor that is not.
        """
        while len(self._pending) > (0 if everything else self._lag):
            step, scale, row, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            values = row.tolist()
            for label, value in zip(self._labels, values, strict=True):
                if not math.isfinite(value):
                    raise StageError(
                        f"training stays finite; at step {step} it does not, first in {label} ({value}), loss "
                        f"{values[self._loss_at]}; lower the learning rates (train.muon.lr, train.embed.lr, "
                        "train.scalar.lr) or set train.clip_norm"
                    )
            loss, objective, *gradient_norms = values[self._loss_at :]
            yield Measured(step, scale, loss, objective, math.hypot(*gradient_norms))
