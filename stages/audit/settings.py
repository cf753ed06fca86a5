"""How much an audit asks, and of what it draws lots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.ledger import Event


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Samples of one audit.

    `lot` seeds every draw. It is the hash of what was scored, so that an audit repeats byte for byte and a scorer,
    which does not know the ledger, cannot foresee what it will be asked.
    """

    lot: str
    budget_tokens: int = 1 << 62  # forward tokens that the audit may cost, at most
    cuts: int = 64  # perturbed futures
    chunks: int = 1  # states after learning that are examined, for scorers that adapt
    update_tokens: int = 0  # what training on one chunk costs
    exposed_targets: int = 512  # of the stream that a scorer gets which asks for all of it
    batch_windows: int = 32
    evaluate_ranks: int = 1
    tolerance: float = 0.0  # largest difference of two logits that is none: 0 demands equal bits
    tolerance_replay_nats: float = 1e-3  # of a price in another batch shape, on other ranks, or on a GPU
    tolerance_mass: float = 1e-4
    mass_places: int = 1  # of a whole stream, where every token of the vocabulary is tried as the target
    exact_replay: bool = True  # whether evaluate's own batches must give its very bits: on a CPU

    def lots(self, purpose: str) -> np.random.Generator:
        """A generator for one purpose; purposes do not disturb each other."""
        return np.random.default_rng([*f"{self.lot}/{purpose}".encode()])


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a whole evaluation says about itself, where it can be checked from outside."""

    journal: Sequence[Event] = ()
    """What it did, in time order; empty when it keeps none."""
    isolates_documents: int | None = None
    """The BOS id, when it claims that no document's score depends on another document."""
    trained_before_first_score: int | None = None
    """Backward passes and optimizer steps before the first price was fixed, where an adapter could watch."""
    known_targets: int | None = None
    """Targets that the whole split has, where that is known."""
