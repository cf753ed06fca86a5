"""Learning rate, momentum and averaging as pure functions of progress: nothing here reads a clock or keeps a state.

A step is counted from 0: `step` updates are done when the values for the next one are asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stages.train.config import Config, QatConfig


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


def scale_by_steps(step: int, total: int, warmup: float, warmdown: float, decay: str = "linear") -> float:
    """Learning-rate multiplier in [0, 1] of a run of `total` steps: linear up, flat, down to 0 after the last step."""
    left = (total - step) / warmdown if warmdown > 0 else 1.0
    return min(fall(left, decay), warmup_scale(step, warmup))


def scale_by_clock(
    step: int, elapsed_s: float, budget_s: float, warmup: float, warmdown: float, decay: str = "linear"
) -> float:
    """The multiplier when time decides: `warmdown` steps are converted to seconds by the mean step so far.

    As published: elapsed time excludes validation and compilation, and there is no fall before the first step is timed.
    """
    warmdown_s = warmdown * elapsed_s / max(step, 1)
    left = (budget_s - elapsed_s) / warmdown_s if warmdown_s > 0 else 1.0
    return min(fall(left, decay), warmup_scale(step, warmup))


def fall(left: float, decay: str) -> float:
    """The multiplier where `left` warmdowns are left of the run: linear, or half a cosine wave over the last one."""
    left = max(0.0, min(1.0, left))
    return 0.5 * (1.0 - math.cos(math.pi * left)) if decay == "cosine" else left


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


def hardness(config: QatConfig, progress: float) -> float:
    """How hard soft rounding is after a share `progress` of the quantised steps: linear, or geometric by form."""
    soft = config.soft
    if soft.form == "residual":
        return math.exp((1.0 - progress) * math.log(soft.start) + progress * math.log(soft.end))
    return (1.0 - progress) * soft.start + progress * soft.end


class Schedule:
    """A configuration's schedule, its horizons resolved to steps of a run that is expected to take `expected`."""

    def __init__(self, config: Config, expected: int) -> None:
        self._config = config
        self._warmup = resolve(config.schedule.warmup, expected)
        self._warmdown = resolve(config.schedule.warmdown, expected)
        self._ramp = resolve(config.muon.momentum_ramp, expected)
        self._snapshot_every = interval(config.snapshots.every, expected)
        self.ema_decay = ema_decay(resolve(config.ema.time_constant, expected))
        """Weight of the old average at every step."""
        self.validate_every = interval(config.validate_every, expected)
        """Steps between validations; 0: only at the end."""

    def scale(self, step: int, elapsed_s: float) -> float:
        """The learning-rate multiplier of the update after `step` updates and `elapsed_s` seconds of training."""
        config, decay = self._config, self._config.schedule.decay
        if config.schedule.clock == "wall":
            return scale_by_clock(step, elapsed_s, config.budget_s, self._warmup, self._warmdown, decay)
        return scale_by_steps(step, config.steps, self._warmup, self._warmdown, decay)

    def share(self, step: int, elapsed_s: float) -> float:
        """The share of the run that is done, in [0, 1], by the schedule's clock."""
        config = self._config
        done = elapsed_s / config.budget_s if config.schedule.clock == "wall" else step / config.steps
        return min(done, 1.0)

    def qat_is_due(self, step: int, scale: float, share: float) -> bool:
        """Whether weights are on their grid in the update after `step` updates, and so in all later ones."""
        qat = self._config.qat
        if qat.below_scale:  # the small multipliers of a warm-up are not the end of the run
            return qat.live and step >= self._warmup and scale < qat.below_scale
        return qat.live and share >= qat.after_share

    def qat_hardness(self, scale: float, share: float) -> float:
        """How hard soft rounding is at this multiplier or share of the run: from the flip's to the end's.

        PR #1232: progress is 1 - scale / below_scale.
        """
        qat = self._config.qat
        if qat.below_scale:
            progress = 1.0 - scale / qat.below_scale
        else:
            progress = (share - qat.after_share) / (1.0 - qat.after_share)
        return hardness(qat, min(max(progress, 0.0), 1.0))

    def momentum(self, step: int) -> float:
        """Muon's momentum of the update after `step` updates."""
        return momentum(step, self._config.muon.momentum_start, self._config.muon.momentum, self._ramp)

    def snapshot_is_due(self, step: int, scale: float) -> bool:
        """Whether the weights after `step` updates, the last one at `scale`, are a warmdown snapshot."""
        return (
            self._snapshot_every > 0 and scale < self._config.snapshots.below_scale and not step % self._snapshot_every
        )
