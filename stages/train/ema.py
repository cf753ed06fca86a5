"""Exponential moving average of the whole state in fp32: starts at the initial weights, without bias correction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """average <- decay * average + (1 - decay) * weights, all tensors in one batched call."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._live = list(state.values())
        self._average = [tensor.detach().float().clone() for tensor in self._live]
        self._names = list(state)

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Take in the live weights as they are now; `decay` is the weight of the old average."""
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self._average, self._live, 1.0 - decay
        )

    def state(self) -> dict[str, Tensor]:
        """The averages by name; references, not copies."""
        return dict(zip(self._names, self._average, strict=True))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take copies of what `state` returned."""
        for name, average in self.state().items():
            average.copy_(state[name])
