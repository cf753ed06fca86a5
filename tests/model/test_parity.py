"""Our network and Muon against what the published scripts computed, frozen by `benchmarks/parity.py --freeze`.

The frozen numbers come from the scripts themselves, run in fp32 on shared weights; no script is needed here.
"""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PARITY = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "parity_cases.py")))
FROZEN = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests" / "model" / "parity").iterdir())}
CASES = [(script, case) for script in FROZEN for case in FROZEN[script]["cases"]]


def relative_errors(got: dict, want: dict) -> dict[str, float]:
    """Per tensor, the worse of norm and signed sum, relative to the norm."""
    assert got.keys() == want.keys()
    return {name: max(abs(a - b) for a, b in zip(got[name], want[name], strict=True)) / want[name][0] for name in want}


@pytest.mark.parametrize(("script", "case"), CASES)
def test_forward_loss_gradients_and_muon_equal_the_published_code(script, case):
    frozen, ours = FROZEN[script]["cases"][case], PARITY.CASES[script][case]
    computed = PARITY.compute_ours(ours, torch.float32)
    computed.updates = PARITY.our_updates(ours, torch.float32, torch.float32, computed.gradients)
    got = PARITY.frozen_values(ours, computed)
    assert got["loss"] == pytest.approx(frozen["loss"], rel=1e-6)
    assert got["logits"] == pytest.approx(frozen["logits"], abs=3e-5)
    assert max(relative_errors(got["gradients"], frozen["gradients"]).values()) < 3e-5
    assert max(relative_errors(got["updates"], frozen["updates"]).values()) < 1e-4


@pytest.mark.parametrize(
    "change",
    [{"ln_scale": False}, {"softcap": 29.9}, {"activation": "leaky_relu2", "leaky_slope": 0.1}],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices_a_small_change_of_a_formula(change):
    case = PARITY.CASES["pr398"]["short"]
    computed = PARITY.compute_ours(replace(case, config=replace(case.config, **change)), torch.float32)
    got, frozen = PARITY.frozen_values(case, computed), FROZEN["pr398"]["cases"]["short"]
    assert max(relative_errors(got["gradients"], frozen["gradients"]).values()) > 3e-4


def test_every_case_is_frozen_from_the_same_shared_weights():
    assert {name: list(frozen["cases"]) for name, frozen in FROZEN.items()} == {
        name: list(cases) for name, cases in PARITY.CASES.items()
    }
    assert {frozen["seed"] for frozen in FROZEN.values()} == {PARITY.SEED}
