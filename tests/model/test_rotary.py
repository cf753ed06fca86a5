from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import RopeConfig
from model.rotary import rotary_base, rotary_tables, rotate

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def test_the_base_at_2048_tokens_is_the_published_one():
    assert rotary_base(RopeConfig(dims=16, reference_tokens=1024), 16, 2048) == pytest.approx(22_081.79, abs=0.005)


@pytest.mark.parametrize(("reference", "tokens"), [(1024, 1024), (1024, 7), (0, 4096)])
def test_the_base_stays_up_to_the_reference_length_or_without_one(reference, tokens):
    assert rotary_base(RopeConfig(base=500.0, reference_tokens=reference), 16, tokens) == 500.0


def test_tables_hold_the_angles_of_the_formula():
    cos_TR, sin_TR = rotary_tables(RopeConfig(dims=6, base=100.0), 8, 40, CPU)
    for position in (0, 1, 39):
        for pair in range(3):
            angle = position * 100.0 ** (-2 * pair / 6)
            assert cos_TR[position, pair].item() == pytest.approx(math.cos(angle), abs=1e-5)
            assert sin_TR[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-5)


def test_tables_are_fp32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tables = rotary_tables(RopeConfig(), 8, 5, CPU)
    torch.testing.assert_close(tables, rotary_tables(RopeConfig(), 8, 5, CPU), rtol=0, atol=0)
    assert tables[0].dtype == torch.float32


def test_rotation_turns_each_pair_and_passes_the_rest():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]).view(1, 1, 1, 5)
    cos, sin = torch.tensor([[0.6, 1.0]]), torch.tensor([[0.8, 0.0]])
    want = [1 * 0.6 + 3 * 0.8, 2.0, 3 * 0.6 - 1 * 0.8, 4.0, 9.0]
    torch.testing.assert_close(rotate(x, cos, sin).flatten(), torch.tensor(want))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from([2, 4, 8]), st.integers(0, 40), st.integers(0, 40), st.integers(0, 50), st.integers(0, 999))
def test_scores_depend_on_the_distance_between_positions_only(dims, i, j, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)
    cos, sin = rotary_tables(RopeConfig(dims=dims), 8, 100, CPU)

    def score(a: int, b: int) -> float:
        turned = (rotate(x, cos[t : t + 1], sin[t : t + 1]) for x, t in ((q, a), (k, b)))
        return float(torch.mul(*turned).sum())

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=1e-4)
