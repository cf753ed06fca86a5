"""What training minimises: cross-entropy, with weights, a z-loss and quantised weights where they are asked for.

Letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from stages.train.qat import FakeQuantise, OnGrid

if TYPE_CHECKING:
    from stages.train.config import Config


def token_nats(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """nats_BT of each target, in fp32: what validation measures."""
    return cross_entropy(model(inputs_BT), targets_BT)


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """nats_BT of each target."""
    nats = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
    return nats.view_as(targets_BT)


class Objective:
    """The training loss of one micro-batch. What changes from step to step are its arguments."""

    def __init__(self, config: Config) -> None:
        self._z_loss = config.z_loss
        self._blind = config.network.memory_tokens
        self._renormalise = config.complement.renormalise
        self.fake = FakeQuantise(config.qat) if config.qat.live else None

    def losses(
        self,
        model: nn.Module,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        weights_BT: Tensor | None = None,
        on_grid: OnGrid | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(what is minimised [], mean nats per token []).

        Targets of positions that see memory in place of their tokens count in neither, as published (PR #398).

        weights_BT: how much each target counts; None: all the same.
        on_grid: compute with quantised weights; None: with the weights as they are.
        """
        weights = self.fake.weights(model, on_grid) if self.fake and on_grid is not None else {}
        logits_BTV = functional_call(model, weights, (inputs_BT,)) if weights else model(inputs_BT)
        nats_BT = cross_entropy(logits_BTV, targets_BT)
        if self._blind:
            nats_BT = nats_BT[:, self._blind :]
            weights_BT = None if weights_BT is None else weights_BT[:, self._blind :]
        loss = mean = nats_BT.mean()
        if weights_BT is not None:
            loss = (weights_BT * nats_BT).mean()
            if self._renormalise:
                loss = loss / weights_BT.mean()
        if self._z_loss:
            loss = loss + self._z_loss * torch.logsumexp(logits_BTV, dim=-1).square().mean()
        return loss, mean.detach()
