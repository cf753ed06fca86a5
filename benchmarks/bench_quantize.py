"""How long does quantising a network take, by rule? Two CPU threads, no calibration data."""

from __future__ import annotations

import pytest
import torch
from trained import trained_network

from stages.quantize.config import Config, GroupConfig
from stages.quantize.errors import summary
from stages.quantize.network import quantize_network

pytestmark = pytest.mark.usefixtures("two_threads")

RULES = {
    "max with floor": {"matrices": GroupConfig(bits=6, scale_floor=1 / 31, full_range=True)},
    "search per row": {},
    "search per matrix": {"search_per": "matrix"},
}
SIZES = {"2M": (3, 256), "27M": (11, 512)}
CASES = [
    pytest.param(*SIZES[size], rule, id=f"{size} {rule}", marks=[pytest.mark.slow] * (size == "27M"))
    for size in SIZES
    for rule in RULES
]


@pytest.mark.parametrize(("layers", "dim", "rule"), CASES)
def test_quantising_a_network(benchmark, layers, dim, rule):
    tensors = trained_network(layers=layers, dim=dim, buckets=2048)
    config = Config(**RULES[rule], small_weights=4096)

    def run():
        return [row for _, _, row in quantize_network(tensors, config, torch.device("cpu"))]

    rows = benchmark.pedantic(run, rounds=1)
    groups = summary(rows)
    assert 0.01 < groups["matrices"]["relative_rmse"] < 0.2
    benchmark.extra_info["weights"] = groups["all"]["weights"]
    benchmark.extra_info["relative_rmse_of_matrices"] = round(float(groups["matrices"]["relative_rmse"]), 5)
