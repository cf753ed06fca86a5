"""How much an audit asks, and of what it draws lots."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Samples of one audit.

    `lot` seeds every draw. It is the hash of what was scored, so that an audit repeats byte for byte and a scorer,
    which does not know the ledger, cannot foresee what it will be asked.
    """

    lot: str
    forward_tokens: int  # that the audit may cost, at most
    cuts: int = 64  # perturbed futures
    mass_positions: int = 64  # where all V targets are asked for
    tolerance_nats: float = 0.0  # largest difference that is none: 0 demands equal bits
    tolerance_mass: float = 1e-4
    deep: bool = False

    def lots(self, purpose: str) -> np.random.Generator:
        """A generator for one purpose; purposes do not disturb each other."""
        return np.random.default_rng([*f"{self.lot}/{purpose}".encode()])


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a whole evaluation says about itself, where it can be checked from outside."""

    journal: tuple[tuple[str, int, int], ...] = ()
    """(kind, lo, hi) in time order, kinds as in `model/ledger.py`; empty when it keeps none."""
    isolates_documents: bool = False
    """Whether it claims that no document's score depends on another document."""
    steps_before_first_score: int | None = None
    """Backward passes or optimizer steps seen before the first price was fixed, where an adapter could watch."""
    known_targets: int | None = field(default=None)
    """Targets that the whole split has, where that is known."""
