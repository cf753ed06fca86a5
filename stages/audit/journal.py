"""Listens to a whole evaluation: what it reads of the stream, what it trains on, and which prices it adds up.

An evaluation gets all tokens, so nothing can stop it; but what it reads outside of inference mode it may train on, and
what it adds up it says. So its order can be checked as a ledger's can, without trusting its own account of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.ledger import Event
from stages.audit.settings import Claims
from stages.audit.watch import Seen, watch_training


@dataclass
class Journal:
    """What one evaluation did, in time order. `events` are those of `model/ledger.py`."""

    targets: int
    events: list[Event] = field(default_factory=list)
    terms: dict[int, list[float]] = field(default_factory=dict)  # target -> nats, as many as the sum has
    trained_before_first_score: int = 0
    _priced: set[int] = field(default_factory=set)
    _seen: Seen = field(default_factory=Seen)

    def price(self, lo: int, nll_K: Tensor, instead: bool = False) -> None:
        """Add up the prices of targets lo .. lo + K - 1, or let the sum take them instead of what it has for these."""
        if not self._priced:
            self.trained_before_first_score = self._seen.gradients + self._seen.steps
        targets = range(lo, lo + len(nll_K))
        for target, nats in zip(targets, nll_K.tolist(), strict=True):
            terms = self.terms.setdefault(target, [])
            terms[:] = [nats] if instead else [*terms, nats]
        self._note("score", [target for target in targets if target not in self._priced])
        self._note("again", [target for target in targets if target in self._priced])
        self._priced.update(targets)

    def read(self, lo: int, hi: int) -> None:
        """Tokens that cover targets lo .. hi - 1 were read; outside of inference mode they can be trained on."""
        if not torch.is_inference_mode_enabled() and hi > lo:
            self.events.append(Event("reveal", lo, hi))

    def _note(self, kind: Literal["score", "again"], targets: list[int]) -> None:
        start = 0
        for i in range(1, len(targets) + 1):
            if i == len(targets) or targets[i] != targets[i - 1] + 1:
                self.events.append(Event(kind, targets[start], targets[i - 1] + 1))
                start = i

    def nll(self) -> np.ndarray:
        """The price of each target, the first one of several, 0 where it has none: float64 [targets]."""
        return np.array([self.terms.get(target, [0.0])[0] for target in range(self.targets)])

    def counts(self) -> np.ndarray:
        """How many terms each target has, int64 [targets]."""
        return np.array([len(self.terms.get(target, [])) for target in range(self.targets)])

    def claims(self, isolates_documents: int | None = None) -> Claims:
        """What can be checked of it."""
        return Claims(
            journal=tuple(self.events),
            trained_before_first_score=self.trained_before_first_score,
            isolates_documents=isolates_documents,
            known_targets=self.targets,
        )


class Tokens:
    """All tokens of a stream [N + 1]; slices are int64 tensors, and are noted."""

    def __init__(self, ids: np.ndarray, journal: Journal) -> None:
        self._ids, self._journal = torch.from_numpy(ids.astype(np.int64)), journal

    def __len__(self) -> int:
        return len(self._ids)

    def numel(self) -> int:
        """As a tensor would say it."""
        return len(self._ids)

    def __getitem__(self, part: slice) -> Tensor:
        tokens = self._ids[part]
        start = int(part.start or 0)
        self._journal.read(start, start + len(tokens) - 1)
        return tokens


Evaluation = Callable[[Tokens, Journal], None]
"""Reads tokens, and tells the journal the price of every target that its score sums over."""


def listen(evaluation: Evaluation, ids: np.ndarray) -> Journal:
    """Run it over a stream [N + 1] and say what it did. Its own random numbers start from the same seed each time."""
    journal = Journal(targets=len(ids) - 1)
    torch.manual_seed(0)
    with watch_training() as seen:
        journal._seen = seen
        evaluation(Tokens(ids, journal), journal)
    return journal
