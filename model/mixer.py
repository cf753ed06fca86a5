"""Experts that learn from scored chunks, blended with the network's prediction.

A legal expert gives a whole distribution from the prefix alone; blended with a weight that is a function of the prefix
alone, the result is one too, and the referee prices it as any other. The published hashed mixer gives a number for the
realised target only: it is priced under the referee's exception, and the score carries rule C2.

Letters: B windows, T inputs of a window, S scored positions, K = B * S targets, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.hashed_ngram import FLOOR, HashedNGrams
from model.ngram import NGrams
from model.referee import Handout, Referee, Revealed, RuleBroken, sum_over_ranks

SUM_TOLERANCE = 1e-5
_SLOPE_PER_NAT = 2.0  # of the sigmoid in the gate, as published in pull request #1033


@dataclass(frozen=True)
class Gate:
    """The expert's weight: base + span * sigmoid(2 * (H - center)), H the entropy of the network's prediction in nats.

    With span 0 it is constant. Formula and defaults are those of pull request #1033.
    """

    base: float = 0.20
    span: float = 0.55
    center_nats: float = 3.0

    def __post_init__(self) -> None:
        if self.base < 0 or self.span < 0 or not 0 < self.base + self.span < 1:
            raise ValueError(
                f"an expert's weight lies between 0 and 1; got {self.base} to {self.base + self.span}; lower them"
            )

    def __call__(self, logp_KV: Tensor) -> Tensor:
        """The weight of the expert for each row of the network's log-probabilities, [K]."""
        if not self.span:
            return torch.full_like(logp_KV[:, 0], self.base)
        entropy_K = -(logp_KV.exp() * logp_KV).sum(dim=-1)
        return self.base + self.span * torch.sigmoid(_SLOPE_PER_NAT * (entropy_K - self.center_nats))


class Mixer(Protocol):
    """What stands between the network and the referee."""

    mixed_positions: int
    """Targets of closed spans, of all ranks, whose distribution an expert changed."""

    @property
    def active(self) -> bool:
        """Whether the expert has counted enough to speak."""
        ...

    def commit(self, referee: Referee, handout: Handout, logits_KV: Tensor) -> None:
        """Price a handout."""

    def update(self, revealed: Revealed) -> None:
        """Learn from a scored chunk; all ranks call it, with the same tokens."""


class Blend:
    """The legal one: p = (1 - w) * network + w * n-grams, over the whole vocabulary."""

    def __init__(self, ngrams: NGrams, gate: Gate, *, active_after: int = 0, world: int = 1) -> None:
        self.mixed_positions = 0
        self._ngrams, self._gate = ngrams, gate
        self._active_after, self._world, self._mixed = max(active_after, 1), world, 0

    @property
    def active(self) -> bool:
        """Whether the expert has counted enough to speak."""
        return self._ngrams.tokens >= self._active_after

    def commit(self, referee: Referee, handout: Handout, logits_KV: Tensor) -> None:
        """Blend, once the expert has counted enough tokens, and price."""
        if self.active:
            logits_KV = self.blend(handout, logits_KV)
            self._mixed += len(logits_KV)
        referee.commit(handout.lo, logits_KV)

    def blend(self, handout: Handout, logits_KV: Tensor) -> Tensor:
        """Log-probabilities of the blend, [K, V]."""
        logp_KV = torch.log_softmax(logits_KV.float(), dim=-1)
        weight_K1 = self._gate(logp_KV)[:, None]
        p_KV = self._ngrams.distribution(self._ngrams.contexts(handout.inputs_BT, handout.scored))
        off = (p_KV.sum(dim=-1, dtype=torch.float64) - 1).abs().max().item()
        if not off <= SUM_TOLERANCE:
            raise RuleBroken("C2", f"an expert's distribution sums to 1; one of these is off by {off:.1e}")
        return torch.logaddexp(logp_KV + (1 - weight_K1).log(), p_KV.mul_(weight_K1).log())

    def update(self, revealed: Revealed) -> None:
        """Count a chunk's tokens. Chunks overlap by one token, which is counted once."""
        self._ngrams.update(revealed.tokens[1:] if self._ngrams.tokens else revealed.tokens)
        self.mixed_positions += int(sum_over_ranks(np.array([self._mixed]), self._world)[0])
        self._mixed = 0


class MayPermit(Protocol):
    """Who can let prices come from what is no distribution: the referee."""

    def permit_unnormalised(self, why: str) -> None:
        """Permit it, and remember."""


class PublishedMixer:
    """Pull request #1033's: the network's price of the target blended with a quotient of two bucket counts."""

    WHY = "hashed n-gram counts are read at the realised target only; what is priced does not sum to 1"

    def __init__(
        self, referee: MayPermit, ngrams: HashedNGrams, gate: Gate, *, active_after: int = 10_000, world: int = 1
    ) -> None:
        referee.permit_unnormalised(self.WHY)
        self.mixed_positions = 0
        self._ngrams, self._gate = ngrams, gate
        self._active_after, self._world, self._mixed = active_after, world, 0

    @property
    def active(self) -> bool:
        """Whether the expert has counted enough to speak."""
        return self._ngrams.tokens >= self._active_after

    def commit(self, referee: Referee, handout: Handout, logits_KV: Tensor) -> None:
        """Price normally at first; once enough tokens are counted, price what is not a distribution."""
        if not self.active:
            referee.commit(handout.lo, logits_KV)
            return
        referee.commit_unnormalised(handout.lo, logits_KV, lambda targets_K: self.price(handout, logits_KV, targets_K))
        self._mixed += len(logits_KV)

    def price(self, handout: Handout, logits_KV: Tensor, targets_K: Tensor) -> Tensor:
        """Minus the log of the blended mass of each target, [K], in nats."""
        logp_KV = torch.log_softmax(logits_KV.float(), dim=-1)
        network_K = logp_KV.gather(1, targets_K[:, None])[:, 0].exp()
        weight_K = self._gate(logp_KV)
        expert_K = self._ngrams.mass(handout.inputs_BT, handout.scored, targets_K)
        return -((1 - weight_K) * network_K + weight_K * expert_K).clamp(min=FLOOR).log()

    def update(self, revealed: Revealed) -> None:
        """Count the chunk's inputs; its last target is the next chunk's first input."""
        self._ngrams.update(revealed.tokens[:-1])
        self.mixed_positions += int(sum_over_ranks(np.array([self._mixed]), self._world)[0])
        self._mixed = 0
