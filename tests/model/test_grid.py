"""The quantisation grid: its error bound, its edges, and the bit packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.grid import SMALLEST_SCALE, Grid, choose_scales, dequantize, pack, quantize, unpack

PUBLISHED_INT6 = Grid(bits=6, floor=1 / 31, full_range=True)


def rows(seed: int, r: int, c: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, c, generator=generator) * torch.exp(spread * torch.randn(r, 1, generator=generator))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(2, 8),
    r=st.integers(1, 9),
    c=st.integers(1, 33),
    share=st.floats(0.1, 1.0),
    floor=st.sampled_from([0.0, 1 / 31, 1.0]),
)
def test_inside_the_clip_the_error_is_at_most_half_a_step(seed, bits, r, c, share, floor):
    w_RC = rows(seed, r, c)
    grid = Grid(bits=bits, floor=floor)
    clip_R = w_RC.abs().amax(-1) * share
    scale_R = choose_scales(clip_R, grid)
    step_R1 = scale_R.float()[:, None]
    back_RC = dequantize(quantize(w_RC, scale_R, grid), scale_R)
    inside = w_RC.abs() <= torch.minimum(clip_R[:, None], grid.top * step_R1)
    assert ((back_RC - w_RC).abs() <= 0.5 * step_R1 * (1 + 1e-6))[inside].all()
    assert back_RC.abs().max() <= (grid.top * step_R1).max()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8))
def test_what_lies_on_the_grid_stays_where_it_is(seed, bits):
    grid = Grid(bits=bits)
    scale_R = rows(seed, 5, 1).abs()[:, 0].half()
    codes_RC = torch.randint(grid.bottom, grid.top + 1, (5, 7), generator=torch.Generator().manual_seed(seed))
    w_RC = dequantize(codes_RC.to(torch.int8), scale_R)
    assert torch.equal(quantize(w_RC, scale_R, grid), codes_RC.to(torch.int8))


def test_grids_have_the_published_ranges():
    assert (Grid(bits=6).bottom, Grid(bits=6).top) == (-31, 31)
    assert (PUBLISHED_INT6.bottom, PUBLISHED_INT6.top) == (-32, 31)
    assert (Grid(bits=8).bottom, Grid(bits=8).top) == (-127, 127)
    assert (Grid(bits=5).bottom, Grid(bits=5).top) == (-15, 15)


def test_the_published_int6_rule_is_a_grid():
    w_RC = rows(3, 64, 512) * 0.3
    want_R = (w_RC.abs().amax(dim=1) / 31.0).clamp_min(1.0 / 31.0).to(torch.float16)
    want_RC = torch.clamp(torch.round(w_RC / want_R.float()[:, None]), -32, 31).to(torch.int8)
    scale_R = choose_scales(w_RC.abs().amax(dim=1), PUBLISHED_INT6)
    assert torch.equal(scale_R, want_R)
    assert torch.equal(quantize(w_RC, scale_R, PUBLISHED_INT6), want_RC)
    floored = scale_R == torch.tensor(1 / 31).half()
    assert 0 < floored.sum() < 64


def test_a_full_range_grid_reaches_one_code_further_down():
    w_RC = torch.tensor([[-10.0, 10.0]])
    scale_R = torch.tensor([0.1]).half()
    assert quantize(w_RC, scale_R, Grid(bits=6, full_range=True)).tolist() == [[-32, 31]]
    assert quantize(w_RC, scale_R, Grid(bits=6)).tolist() == [[-31, 31]]


def test_a_row_of_zeros_has_a_scale_and_stays_zero():
    grid = Grid(bits=6)
    scale_R = choose_scales(torch.zeros(2), grid)
    assert scale_R.tolist() == [SMALLEST_SCALE] * 2
    assert dequantize(quantize(torch.zeros(2, 4), scale_R, grid), scale_R).abs().sum() == 0


def test_a_scale_beyond_fp16_is_refused():
    with pytest.raises(ValueError, match="65504"):
        choose_scales(torch.tensor([1e9]), Grid(bits=6))


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_a_grid_of_no_int8_width_is_refused(bits):
    with pytest.raises(ValueError, match="2 to 8 bits"):
        Grid(bits=bits)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(bits=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 2**31))
def test_unpacking_undoes_packing_for_every_width_and_odd_counts(bits, count, seed):
    half = 1 << (bits - 1)
    codes = np.random.default_rng(seed).integers(-half, half, count)
    packed = pack(codes, bits)
    assert len(packed) == (count * bits + 7) // 8
    assert unpack(packed, bits, count).tolist() == codes.tolist()


def test_packing_agrees_with_a_hand_worked_case():
    # -1 = 11111, 15 = 01111, -16 = 10000, then one zero bit of padding
    assert pack(np.array([-1, 15, -16]), 5) == bytes([0b11111011, 0b11100000])


def test_codes_that_do_not_fit_and_damaged_bits_are_refused():
    with pytest.raises(ValueError, match=r"\[-32, 32\); got 0 .. 32"):
        pack(np.array([0, 32]), 6)
    with pytest.raises(ValueError, match="4 codes of 6 bits are 3 bytes; got 4"):
        unpack(b"\0" * 4, 6, 4)
    with pytest.raises(ValueError, match="padding"):
        unpack(b"\x01", 6, 1)
