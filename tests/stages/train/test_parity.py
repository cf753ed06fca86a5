"""Our loop against the losses of the challenge's own script, frozen by `benchmarks/parity_loop.py --freeze`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]
PARITY = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "parity_loop.py")))
FROZEN = json.loads(PARITY.FROZEN.read_text())["losses"]


def losses(folder: Path, **settings: float) -> list[float]:
    trainer = PARITY.our_trainer(folder, **settings)
    trainer.run()
    return [line["train_loss"] for line in trainer.progress.curve]


@pytest.mark.parametrize("clip_norm", list(FROZEN))
def test_losses_follow_the_published_script_over_a_whole_run(clip_norm: str, tmp_path: Path):
    ours = losses(tmp_path, clip_norm=float(clip_norm))
    assert len(ours) == PARITY.STEPS
    assert ours == pytest.approx(FROZEN[clip_norm], abs=1e-4)


def test_the_comparison_notices_a_warmdown_that_is_one_step_shorter(tmp_path: Path):
    ours = losses(tmp_path, clip_norm=0.0, warmdown=PARITY.WARMDOWN - 1)
    assert ours[: PARITY.STEPS - 8] == pytest.approx(FROZEN["0.0"][:-8], abs=1e-4)
    assert ours != pytest.approx(FROZEN["0.0"], abs=1e-4)
