"""Complementary weighting: targets that a bigram table predicts count less in the training loss (PR #1033).

weight = max(floor, 1 - alpha C[x, y] / (N[x] + 1)); C counts the pairs (x, y) of neighbouring tokens that this rank has
trained on, N[x] the sum over y. As published each rank has a table of its own, filled after each micro-step's backward
pass; unlike there counts are integers, since fp32 stands still at 2^24.

Letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stages.train.config import ComplementConfig


class BigramWeights:
    """Counts of the past as weights of the present."""

    def __init__(self, vocab: int, config: ComplementConfig, device: torch.device) -> None:
        self._config = config
        self._pairs_VV = torch.zeros(vocab, vocab, dtype=torch.int64, device=device)
        self._firsts_V = torch.zeros(vocab, dtype=torch.int64, device=device)
        self._unfinished: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def weights(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """weights_BT in [floor, 1], in fp32."""
        share_BT = self._pairs_VV[inputs_BT, targets_BT].float() / (self._firsts_V[inputs_BT] + 1).float()
        return (1.0 - self._config.alpha * share_BT).clamp_min(self._config.floor)

    def count(self, inputs_BT: Tensor, targets_BT: Tensor) -> None:
        """Take in a micro-batch that was trained on; its step is not finished yet."""
        self._add(inputs_BT, targets_BT, 1)
        self._unfinished.append((inputs_BT, targets_BT))

    def finish_step(self) -> None:
        """What was counted so far stays."""
        self._unfinished.clear()

    def rewind(self) -> None:
        """Be as the last finished step left it: the step that was begun will be done again from its start."""
        for inputs_BT, targets_BT in self._unfinished:
            self._add(inputs_BT, targets_BT, -1)
        self._unfinished.clear()

    @torch.no_grad()
    def _add(self, inputs_BT: Tensor, targets_BT: Tensor, times: int) -> None:
        firsts, seconds = inputs_BT.flatten(), targets_BT.flatten()
        added = torch.full_like(firsts, times)
        self._pairs_VV.view(-1).scatter_add_(0, firsts * len(self._firsts_V) + seconds, added)
        self._firsts_V.scatter_add_(0, firsts, added)

    @property
    def counts_VV(self) -> Tensor:
        """How often y followed x: the whole state; a reference, not a copy."""
        return self._pairs_VV

    def load(self, counts_VV: Tensor) -> None:
        """Take a copy of what `counts_VV` was."""
        self._pairs_VV.copy_(counts_VV)
        torch.sum(self._pairs_VV, dim=1, out=self._firsts_V)

    def reset(self) -> None:
        """Forget everything."""
        self._unfinished.clear()
        self._pairs_VV.zero_()
        self._firsts_V.zero_()
