"""Where rows are clipped: against torch's quantile, the published search, and the search's own objective."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.grid import Grid, choose_scales, dequantize, quantize
from stages.quantize.clip import grid_of, row_quantiles, scales_for, search, squared_error
from stages.quantize.config import Config, GroupConfig
from stages.quantize.rules import Rule, rule_of

QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)


def bank(seed: int, n: int = 2, r: int = 8, c: int = 40) -> torch.Tensor:
    """Heavy-tailed rows of different sizes, so that a search has something to find."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(n, r, 1, generator=generator))
    return torch.randn(n, r, c, generator=generator) ** 3 * sizes * 0.1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), c=st.integers(1, 300), quantile=st.floats(0.0625, 1.0, width=32))
def test_row_quantiles_are_torchs(seed, c, quantile):
    w_NRC = bank(seed, c=c)
    low, exact = row_quantiles(w_NRC, [0.5, quantile])
    assert torch.equal(exact, torch.quantile(w_NRC.abs(), quantile, dim=-1))
    assert torch.equal(low, torch.quantile(w_NRC.abs(), 0.5, dim=-1))


def test_the_published_quantile_of_tables_comes_out_to_the_digit():
    w_NRC = bank(1, 1, 16, 512)
    (clip_NR,) = row_quantiles(w_NRC, [0.9999984])
    assert torch.equal(clip_NR[0], torch.quantile(w_NRC[0].abs(), 0.9999984, dim=1))


def published_search(w_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One quantile per matrix by its mean squared error, as the record's README and `spec` describe it."""
    best = None
    for quantile in QUANTILES:
        clip_R = w_RC.abs().amax(1) if quantile == 1.0 else torch.quantile(w_RC.abs(), quantile, dim=1)
        scale_R = torch.clamp(clip_R / 31, min=1 / 31).half()
        codes_RC = (w_RC / scale_R.float()[:, None]).round().clamp(-31, 31)
        error = (codes_RC * scale_R.float()[:, None] - w_RC).pow(2).mean().item()
        if best is None or error < best[0]:
            best = (error, codes_RC.to(torch.int8), scale_R)
    assert best is not None
    return best[1], best[2]


@pytest.mark.parametrize("seed", range(5))
def test_search_per_matrix_is_the_published_one(seed):
    w_NRC = bank(seed, 3, 12, 128) * 20
    rule = rule_of(GroupConfig(bits=6, clip="search", scale_floor=1 / 31))
    scale_NR, _ = scales_for(w_NRC, rule, Config(search_per="matrix"))
    for w_RC, scale_R in zip(w_NRC, scale_NR, strict=True):
        codes_RC, want_R = published_search(w_RC)
        assert torch.equal(scale_R, want_R)
        assert torch.equal(quantize(w_RC, scale_R, grid_of(rule)), codes_RC)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), bits=st.integers(4, 8), per_matrix=st.booleans())
def test_a_search_is_never_worse_than_clipping_at_the_maximum(seed, bits, per_matrix):
    w_NRC, grid = bank(seed), Grid(bits=bits)
    scale_NR, _ = search(w_NRC, QUANTILES, grid, per_matrix)
    found_NR = squared_error(w_NRC, scale_NR, grid)
    plain_NR = squared_error(w_NRC, choose_scales(w_NRC.abs().amax(-1), grid), grid)
    if per_matrix:
        assert (found_NR.sum(1) <= plain_NR.sum(1)).all()
    else:
        assert (found_NR <= plain_NR).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_a_search_per_row_beats_or_equals_every_fixed_quantile_row_by_row(seed):
    w_NRC, grid = bank(seed), Grid(bits=6)
    found_NR = squared_error(w_NRC, search(w_NRC, QUANTILES, grid, False)[0], grid)
    for clip_NR in row_quantiles(w_NRC, QUANTILES):
        assert (found_NR <= squared_error(w_NRC, choose_scales(clip_NR, grid), grid)).all()


def test_heavy_tails_are_clipped_below_their_maximum_and_the_choice_is_told():
    w_NRC = torch.full((1, 2, 2000), 0.01)
    w_NRC[0, 0, 0] = 10.0  # one outlier would cost every other weight of its row all of its digits
    w_NRC[0, 1] = torch.linspace(-1, 1, 2000)
    _, quantile_NR = search(w_NRC * torch.linspace(0.5, 1, 2000), (0.9, 1.0), Grid(bits=6), per_matrix=False)
    assert quantile_NR[0, 1] == 1.0
    scale_NR, quantile_NR = scales_for(w_NRC, Rule(bits=4, clip="max"), Config())
    assert (quantile_NR == 1.0).all()
    assert scale_NR[0, 0] == torch.tensor(10 / 7).half()


def test_the_fixed_quantile_of_a_group_is_the_one_it_names():
    w_NRC = bank(3)
    scale_NR, quantile_NR = scales_for(w_NRC, Rule(bits=8, clip="quantile", quantile=0.75), Config())
    assert (quantile_NR == 0.75).all()
    assert torch.equal(scale_NR, (torch.quantile(w_NRC.abs(), 0.75, dim=-1) / 127).half())


def test_a_floor_hides_the_search_from_small_rows():
    """Spec, both seeds: with the published floor the clip search is a no-op on most rows."""
    w_NRC = torch.randn(1, 16, 512, generator=torch.Generator().manual_seed(0)) * 0.1
    scale_NR, _ = scales_for(w_NRC, Rule(bits=6, clip="search", scale_floor=1 / 31), Config())
    assert (scale_NR == torch.tensor(1 / 31).half()).all()
    codes_NRC = quantize(w_NRC, scale_NR, Grid(bits=6, floor=1 / 31))
    assert (dequantize(codes_NRC, scale_NR) - w_NRC).abs().max() <= 1 / 62 * 1.001
