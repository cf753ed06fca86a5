"""What is audited: a scorer that is asked window by window, or a whole evaluation seen from outside.

A `Scorer` has the referee's view of a protocol: it gets inputs, gives logits, and learns from a chunk when it is told
to. What it cannot be given, it cannot misuse; what it keeps to itself, the detectors look for. A `WholeStream` is the
rest: code that gets all tokens and returns a price for each target, such as a published evaluation loop.

Letters: B windows, T inputs of a window, S scored positions of each, V vocabulary, K = B * S targets, N targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor

from stages.audit.state import State, reachable

WholeStream = Callable[[np.ndarray], np.ndarray]
"""tokens [N + 1] -> nll [N] in nats: target i is token i + 1. Every call starts from the archive, alone."""


class Scorer(ABC):
    """One way of scoring, as the referee sees it.

    The defaults describe a scorer whose logits the referee normalises and that never asks for what is not its own.
    """

    vocab: int
    normalised: bool = True
    """Whether `score` is all there is to a price. If not, `price` is asked, which no distribution stands behind."""
    log_probabilities: bool = False
    """Whether `score` claims to return log-probabilities, which sum to 1 without the referee's help."""
    exposed: bool = False
    """Whether the scorer asks for the whole stream before it scores: `expose` is called after `reset`."""
    trained_tokens: int = 0
    """Inputs that went forward in training since it was opened: part of what an audit costs."""
    trained_while_scoring: int = 0
    """Backward passes and optimizer steps inside `score` or `price` that only its own process could see."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything that was not in the archive."""

    @abstractmethod
    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        """logits_BSV of the last S = `scored` positions of each row, fp32. Changes nothing that a score depends on."""

    @abstractmethod
    def update(self, tokens: Tensor, index: int) -> None:
        """Learn from scored chunk `index`: input i is tokens[i], its target tokens[i + 1]."""

    def state(self) -> Iterable[State]:
        """Everything that a score may depend on: weights, buffers, optimizer, counts, caches. All that is reachable."""
        return reachable(self)

    def price(self, inputs_BT: Tensor, scored: int, targets_KM: Tensor) -> Tensor:
        """What it says each of M tokens would cost as the target, nats [K, M]; of a scorer that is not `normalised`."""
        raise NotImplementedError

    def expose(self, tokens_N1: Tensor) -> None:
        """Take the whole stream before any of it is scored; of a scorer that is `exposed`."""
        raise NotImplementedError


OpenScorer = Callable[[], Scorer]
"""Opens a scorer on what a submission ships: the archive and the tokenizer, nothing else. The factory closes it."""
