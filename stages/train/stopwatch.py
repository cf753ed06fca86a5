"""The training clock: it stands still during validation, and a GPU has finished whenever it is stopped."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Seconds of training, over all the attempts that a run took."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._total_s = 0.0
        self._started: float | None = None

    def start(self, total_s: float) -> None:
        """Go on from `total_s`."""
        self._total_s, self._started = total_s, time.perf_counter()

    def elapsed_s(self) -> float:
        """Seconds so far. Work that a GPU still has in its queue is not waited for."""
        running = time.perf_counter() - self._started if self._started is not None else 0.0
        return self._total_s + running

    def stop(self) -> float:
        """Wait for the device, stand still, and return the seconds so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._total_s, self._started = self.elapsed_s(), None
        return self._total_s
