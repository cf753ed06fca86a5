"""The stage: which files each kind takes, and what it says when they are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.weights import load_weights, save_weights
from stages.average.config import Config
from stages.average.stage import run
from stages.contract import Runtime, StageError


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    values = {"raw/weights": 1.0, "ema/weights": 2.0, "others/a/weights": 4.0, "others/b/weights": 7.0}
    values |= {f"snapshots/{step:06d}": float(step) for step in (90, 100, 110)}
    for name, value in values.items():
        path = tmp_path / "inputs" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, {"w": torch.full((2, 2), value)}, {"network": "{}"})
    return {role: tmp_path / "inputs" / role for role in ("raw", "ema", "snapshots", "others")}


@pytest.mark.parametrize(
    ("config", "want", "files"),
    [
        (Config(kind="raw"), 1.0, 1),
        (Config(), 2.0, 1),
        (Config(kind="swa"), 100.0, 3),
        (Config(kind="tight_swa", last=2), 105.0, 2),
        (Config(kind="mean", seeds=(7,)), 4.0, 3),
    ],
)
def test_each_kind_takes_its_weights_and_no_others(tmp_path, inputs, runtime: Runtime, config, want, files):
    report = run(config, {role: inputs[role] for role in config.reads()}, tmp_path / "out", runtime)
    tensors, metadata = load_weights(tmp_path / "out" / "weights" / "weights.safetensors")
    assert torch.equal(tensors["w"], torch.full((2, 2), want))
    assert metadata == {"network": "{}"}
    assert report == {"kind": config.kind, "averaged": files, "tensors": 1, "weights": 4}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["weights"]


def test_the_chosen_file_goes_on_bit_for_bit(tmp_path, inputs, runtime):
    run(Config(kind="raw"), inputs, tmp_path / "out", runtime)
    came = (inputs["raw"] / "weights.safetensors").read_bytes()
    assert (tmp_path / "out" / "weights" / "weights.safetensors").read_bytes() == came


@pytest.mark.parametrize(
    ("config", "missing", "message"),
    [
        (Config(kind="swa"), "snapshots", "train took none; set train.snapshots.every"),
        (Config(kind="tight_swa"), "snapshots", "train took none"),
        (Config(kind="ema"), "ema", "train.ema.enabled"),
        (Config(kind="mean", seeds=(7,)), "others", "weights of other runs; there are none"),
    ],
)
def test_what_train_did_not_keep_is_asked_for_by_name(tmp_path, inputs, runtime, config, missing, message):
    for path in inputs[missing].rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(StageError, match=message):
        run(config, inputs, tmp_path / "out", runtime)
    assert not (tmp_path / "out").exists()


def test_more_snapshots_than_there_are_is_an_error_with_both_numbers(tmp_path, inputs, runtime):
    with pytest.raises(StageError, match="got 4, train took 3"):
        run(Config(kind="tight_swa", last=4), inputs, tmp_path / "out", runtime)
