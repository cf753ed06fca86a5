"""Learning rate, momentum and averaging as pure functions of progress: nothing here reads a clock or keeps a state.

A step is counted from 0: `step` updates are done when the values for the next one are asked for.
"""

from __future__ import annotations

from typing import Protocol


class Horizon(Protocol):
    """A span of `steps` in a run of `of` steps."""

    @property
    def steps(self) -> float: ...  # noqa: D102
    @property
    def of(self) -> float: ...  # noqa: D102


def resolve(horizon: Horizon, expected_steps: int) -> float:
    """The span in steps of a run that is expected to take `expected_steps`."""
    return horizon.steps * expected_steps / horizon.of


def interval(horizon: Horizon, expected_steps: int) -> int:
    """A span as a whole number of steps: 0 stays 0 (never), anything else is at least 1."""
    span = resolve(horizon, expected_steps)
    return max(1, round(span)) if span > 0 else 0


def scale_by_steps(step: int, total: int, warmup: float, warmdown: float) -> float:
    """Learning-rate multiplier in [0, 1] of a run of `total` steps: linear up, flat, linear down to 1 / warmdown."""
    falling = (total - step) / warmdown if warmdown > 0 else 1.0
    return max(0.0, min(1.0, falling, warmup_scale(step, warmup)))


def scale_by_clock(step: int, elapsed_s: float, budget_s: float, warmup: float, warmdown: float) -> float:
    """The multiplier when time decides: `warmdown` steps are converted to seconds by the mean step so far.

    As published: elapsed time excludes validation and compilation, and there is no fall before the first step is timed.
    """
    warmdown_s = warmdown * elapsed_s / max(step, 1)
    left_s = max(budget_s - elapsed_s, 0.0)
    falling = left_s / warmdown_s if warmdown_s > 0 else 1.0
    return max(0.0, min(1.0, falling, warmup_scale(step, warmup)))


def warmup_scale(step: int, warmup: float) -> float:
    """The linear rise: the first step of a warm-up of n steps has 1 / n, because 0 would waste it."""
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0


def momentum(step: int, start: float, end: float, ramp: float) -> float:
    """Muon's momentum: linear from `start` at step 0 to `end` at step `ramp`, then constant."""
    done = min(step / ramp, 1.0) if ramp > 0 else 1.0
    return (1.0 - done) * start + done * end


def ema_decay(time_constant: float) -> float:
    """The weight of the old average in an update: 1 - 1 / time_constant; 0 when the constant is at most one step."""
    return 1.0 - 1.0 / time_constant if time_constant > 1.0 else 0.0
