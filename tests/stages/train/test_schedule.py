"""Schedules are bounded, continuous where their pieces meet, and equal to the published rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.config import Horizon
from stages.train.schedule import ema_decay, fall, interval, momentum, resolve, scale_by_clock, scale_by_steps

spans = st.floats(0, 1e5)


def test_horizons_follow_the_expected_length_of_the_run():
    assert resolve(Horizon(steps=3000, of=7400), 7400) == 3000
    assert resolve(Horizon(steps=3000, of=7400), 740) == 300
    assert interval(Horizon(steps=50, of=7400), 74) == 1  # half a step: never less than one
    assert interval(Horizon(steps=0, of=7400), 74) == 0


def test_the_step_schedule_is_the_published_one_and_ends_above_zero():
    # Published: (N - step) / W from step N - W on, else 1.
    scales = [scale_by_steps(step, total=100, warmup=0, warmdown=40) for step in range(100)]
    assert scales[:61] == [1.0] * 61
    assert scales[61:] == [(100 - step) / 40 for step in range(61, 100)]
    assert scale_by_steps(100, total=100, warmup=0, warmdown=40) == 0.0


def test_a_warm_up_rises_by_equal_parts_and_wastes_no_step():
    assert [scale_by_steps(step, 100, warmup=4, warmdown=0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_clock_schedule_converts_steps_by_the_mean_step():
    # 81 ms a step, 3000 steps of warmdown: 243 s, so at 478.5 s exactly half of it is left.
    steps = round(478.5 / 0.081)
    assert scale_by_clock(steps, steps * 0.081, 600.0, 0, 3000) == pytest.approx(0.5, abs=1e-3)
    assert scale_by_clock(0, 0.0, 600.0, 0, 3000) == 1.0
    assert scale_by_clock(100, 601.0, 600.0, 0, 3000) == 0.0


@settings(max_examples=100, deadline=None)
@given(step=st.integers(0, 10**6), total=st.integers(1, 10**6), warmup=spans, warmdown=spans)
def test_the_step_scale_is_bounded_and_never_jumps(step: int, total: int, warmup: float, warmdown: float):
    now, later = (scale_by_steps(s, total, warmup, warmdown) for s in (step, step + 1))
    assert 0.0 <= now <= 1.0
    largest = max(1 / warmup if warmup > 1 else 0, 1 / warmdown if warmdown > 1 else 0)
    if warmup > 1 and warmdown > 1 and step > 0:
        assert abs(later - now) <= largest * (1 + 1e-6) + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    step=st.integers(1, 10**5),
    elapsed=st.floats(1e-3, 1e4),
    budget=st.floats(1e-3, 1e4),
    warmdown=spans,
)
def test_the_clock_scale_is_bounded_and_falls_with_time(step: int, elapsed: float, budget: float, warmdown: float):
    now, later = (scale_by_clock(step, t, budget, 0, warmdown) for t in (elapsed, elapsed * 1.01))
    assert 0.0 <= later <= now <= 1.0


@given(step=st.integers(0, 10**5), ramp=spans)
@settings(max_examples=50, deadline=None)
def test_momentum_stays_between_its_ends(step: int, ramp: float):
    assert 0.85 <= momentum(step, 0.85, 0.95, ramp) <= 0.95


def test_momentum_meets_its_end_at_the_ramps_end():
    assert momentum(0, 0.92, 0.99, 1500) == 0.92
    assert momentum(750, 0.92, 0.99, 1500) == pytest.approx(0.955)
    assert momentum(1500, 0.92, 0.99, 1500) == momentum(9000, 0.92, 0.99, 1500) == 0.99
    assert momentum(0, 0.92, 0.99, 0) == 0.99


def test_a_decay_of_0_997_is_a_time_constant_of_a_third_of_a_thousand():
    assert ema_decay(1000 / 3) == pytest.approx(0.997)
    assert ema_decay(0.5) == ema_decay(0.0) == ema_decay(1.0) == 0.0


def test_a_cosine_falls_over_the_same_span_from_one_to_zero():
    assert [fall(left, "cosine") for left in (2.0, 1.0, 0.5, 0.0, -1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
    assert fall(0.25, "cosine") == pytest.approx((1 - 2**-0.5) / 2)
    scales = [scale_by_steps(step, 100, 0, 40, "cosine") for step in range(101)]
    assert scales[:61] == [1.0] * 61
    assert scales[80] == pytest.approx(0.5)
    assert scales[100] == 0.0
    assert scales == sorted(scales, reverse=True)
    late = 7400, 7400 * 0.081, 600.0, 0, 3000
    assert 0 < scale_by_clock(*late, "cosine") < scale_by_clock(*late)
