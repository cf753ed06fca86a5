"""The recipes' networks and optimizers against what the published scripts computed.

`benchmarks/parity.py --freeze` wrote it down: numbers of the scripts themselves, run in fp32 on shared weights. No
script is needed here.
"""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.config import RecurrenceConfig, ValueEmbeddingConfig

ROOT = Path(__file__).resolve().parents[2]
PARITY = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "parity_cases.py")))
FROZEN = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests" / "model" / "parity").iterdir())}
CASES = [(script, case) for script in FROZEN for case in FROZEN[script]["cases"]]


def relative_errors(got: dict, want: dict) -> dict[str, float]:
    """Per tensor, the worse of norm and signed sum, relative to the norm."""
    assert got.keys() == want.keys()
    return {name: max(abs(a - b) for a, b in zip(got[name], want[name], strict=True)) / want[name][0] for name in want}


def compared(got: dict, want: dict) -> float:
    """The worst of all tensors."""
    return max(relative_errors(got, want).values())


@pytest.mark.parametrize(("script", "case"), CASES)
def test_forward_loss_gradients_and_steps_equal_the_published_code(script, case):
    frozen, ours = FROZEN[script]["cases"][case], PARITY.CASES[script][case]
    got = PARITY.frozen_values(ours, PARITY.compute_ours(ours, torch.float32))
    assert got["loss"] == pytest.approx(frozen["loss"], rel=1e-6)
    assert got["logits"] == pytest.approx(frozen["logits"], abs=3e-5)
    assert compared(got["gradients"], frozen["gradients"]) < 3e-5
    if ours.steps:  # AdamW divides tiny gradients by their own size, Newton-Schulz small singular values by theirs
        assert compared(got["changes"], frozen["changes"]) < 2e-3


def first_gradients(script: str, **change: object) -> dict:
    case = PARITY.CASES[script]["short"]
    train = case.train.model_copy(update={"network": replace(case.network, **change)})
    case = replace(case, train=train, steps=0)
    return PARITY.frozen_values(case, PARITY.compute_ours(case, torch.float32))["gradients"]


@pytest.mark.parametrize(
    ("script", "change"),
    [
        ("pr398", {"ln_scale": False}),
        ("pr398", {"softcap": 29.9}),
        ("pr398", {"activation": "leaky_relu2", "leaky_slope": 0.1}),
        ("pr417", {"xsa_layers": (8, 9, 10)}),
        ("pr417", {"value_embedding": ValueEmbeddingConfig(layers=(8, 9), dim=32)}),
        ("pr1033-recurrent", {"recurrence": RecurrenceConfig(layers=(5, 6))}),
        ("pr1033-recurrent", {"recurrence": RecurrenceConfig(layers=(4, 5), passes=3)}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_the_comparison_notices_a_small_change_of_a_formula(script, change):
    assert compared(first_gradients(script, **change), FROZEN[script]["cases"]["short"]["gradients"]) > 3e-4


@pytest.mark.parametrize(
    ("script", "change"),
    [
        ("pr398", {"aux_matrices": "adamw"}),
        ("pr714", {"aux_matrices": "muon"}),
        ("pr398", {"clip_norm": 0.0}),
        ("pr398", {"scalar": {"weight_decay": 0.0}}),
        ("pr398", {"muon": {"weight_decay": 0.0}}),
        ("pr398", {"embed": {"lr": 0.034}}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_the_comparison_notices_a_small_change_of_an_optimizer(script, change):
    case = PARITY.CASES[script]["short"]
    fields = {
        name: getattr(case.train, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    case = replace(case, train=case.train.model_copy(update=fields))
    changes = PARITY.banks(PARITY.our_changes(case, torch.float32, "float32"))
    got = {name: PARITY.summary(name, tensor) for name, tensor in changes.items()}
    assert compared(got, FROZEN[script]["cases"]["short"]["changes"]) > 4e-3


def test_every_case_is_frozen_from_the_same_shared_weights():
    assert {name: list(frozen["cases"]) for name, frozen in FROZEN.items()} == {
        name: list(cases) for name, cases in PARITY.CASES.items()
    }
    assert {frozen["seed"] for frozen in FROZEN.values()} == {PARITY.SEED}


def test_what_is_frozen_stays_small():
    assert sum(path.stat().st_size for path in (ROOT / "tests" / "model" / "parity").iterdir()) < 65_536
