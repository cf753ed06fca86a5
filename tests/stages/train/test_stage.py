"""What `train` writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import from_dict
from model.gpt import GPT
from model.shards import write_shard
from model.weights import load_weights
from stages.contract import Device, Runtime, StageError
from stages.train import loop, objective
from stages.train.config import Config
from stages.train.stage import run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def train(
    tiny: dict[str, Any], inputs: dict[str, Path], out: Path, runtime: Runtime, **changes: Any
) -> tuple[dict[str, Any], Path]:
    shutil.rmtree(runtime.checkpoints)
    runtime.checkpoints.mkdir()
    out.mkdir()
    return run(Config(**{**tiny, **changes}), inputs, out, runtime, seed=7), out


def curve(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "curve/curve.jsonl").read_text().splitlines()]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny, inputs, tmp_path, runtime):
    _, first = train(tiny, inputs, tmp_path / "a", runtime)
    _, again = train(tiny, inputs, tmp_path / "b", runtime)
    assert contents(first) == contents(again)
    other = tmp_path / "c"
    other.mkdir()
    run(Config(**tiny), inputs, other, runtime, seed=8)
    assert contents(first)["raw/weights.safetensors"] != contents(other)["raw/weights.safetensors"]


def test_every_role_holds_weights_that_say_which_network_they_are(tiny, inputs, tmp_path, runtime):
    report, out = train(tiny, inputs, tmp_path / "out", runtime)
    files = set(contents(out))
    # Scale 8/8 .. 1/8 over steps 5 .. 12: below 0.6 from step 8 on; every third step is kept.
    assert files == {
        "raw/weights.safetensors",
        "ema/weights.safetensors",
        "snapshots/000009.safetensors",
        "snapshots/000012.safetensors",
        "curve/curve.jsonl",
    }
    for name in files - {"curve/curve.jsonl"}:
        tensors, metadata = load_weights(out / name)
        GPT(from_dict(json.loads(metadata["network"]))).load_state_dict(tensors)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    raw, last = (load_weights(out / name)[0] for name in ("raw/weights.safetensors", "snapshots/000012.safetensors"))
    assert all(torch.equal(raw[name], last[name]) for name in raw)
    assert report["params"] == sum(tensor.numel() for tensor in raw.values())
    assert (report["steps"], report["tokens"], report["snapshots"], report["ended_by"]) == (12, 12 * 128, 2, "steps")
    json.dumps(report, allow_nan=False)


def test_the_curve_has_every_step_and_no_clock(tiny, inputs, tmp_path, runtime):
    report, out = train(tiny, inputs, tmp_path / "out", runtime)
    lines = curve(out)
    assert [line["step"] for line in lines] == list(range(13))
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 5, 10, 12]
    assert set().union(*lines) == {"step", "train_loss", "lr_scale", "gradient_norm", "val_loss", "val_bpb"}
    assert lines[1]["train_loss"] == pytest.approx(np.log(64), abs=0.02)
    assert [line["lr_scale"] for line in lines[1:]] == [1.0] * 5 + [7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    # Every target is two bytes.
    assert lines[-1]["val_bpb"] == pytest.approx(lines[-1]["val_loss"] / np.log(2) / 2, rel=1e-5)
    assert (report["train_loss"], report["val_loss"]) == (lines[-1]["train_loss"], lines[-1]["val_loss"])


def test_training_learns_what_can_be_learned(tiny, inputs, tmp_path, runtime):
    report, _ = train(tiny, inputs, tmp_path / "out", runtime, steps=100, batch_tokens=512)
    # 80 % of the ids follow their predecessor by 3 and half the noise is gone with it; uniform would be 4.16.
    assert report["val_loss"] < 2.5


def test_a_coarser_curve_still_ends_with_the_last_step(tiny, inputs, tmp_path, runtime):
    _, out = train(tiny, inputs, tmp_path / "out", runtime, log_every=8, validate_every={"steps": 0, "of": 1})
    assert [line["step"] for line in curve(out)] == [1, 8, 12]
    assert {"train_loss", "val_loss"} <= set(curve(out)[-1])


def test_the_ema_is_the_running_mean_of_the_weights_after_each_step(tiny, inputs, tmp_path, runtime):
    every_step = {
        "snapshots": {"every": {"steps": 1, "of": 12}, "below_scale": 1.0},
        "schedule": {"warmdown": {"steps": 13, "of": 12}},
    }
    _, out = train(tiny, inputs, tmp_path / "out", runtime, **every_step)
    start = GPT(Config(**tiny).network)
    loop.initialise(start, 7)
    mean = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    for step in range(1, 13):
        weights, _ = load_weights(out / f"snapshots/{step:06d}.safetensors")
        mean = {name: 0.75 * mean[name] + 0.25 * weights[name] for name in mean}
    found, _ = load_weights(out / "ema/weights.safetensors")
    for name in mean:
        torch.testing.assert_close(found[name], mean[name], rtol=1e-5, atol=1e-6)


def test_with_terms_in_the_loss_the_curve_tells_both_the_loss_and_what_was_minimised(tiny, inputs, tmp_path, runtime):
    plain, _ = train(tiny, inputs, tmp_path / "a", runtime, steps=1)
    _, out = train(tiny, inputs, tmp_path / "b", runtime, steps=12, z_loss=0.1, complement={"alpha": 1.0})
    first, *_, last = [line for line in curve(out) if "objective" in line]
    assert first["train_loss"] == plain["train_loss"]
    # log Z starts at log 64: 0.1 * 4.16^2 = 1.73 more, less what the pairs of the first micro-step took off.
    assert first["train_loss"] + 0.5 < first["objective"] < first["train_loss"] + 1.73
    assert last["step"] == 12


def test_averages_that_are_off_leave_empty_roles(tiny, inputs, tmp_path, runtime):
    off = {"ema": {"enabled": False}, "snapshots": {"every": {"steps": 0, "of": 1}}}
    _, out = train(tiny, inputs, tmp_path / "out", runtime, **off)
    assert set(contents(out)) == {"raw/weights.safetensors", "curve/curve.jsonl"}
    assert (out / "ema").is_dir()
    assert (out / "snapshots").is_dir()


def test_a_time_budget_ends_the_run_and_scales_the_rate_by_the_clock(tiny, inputs, tmp_path, runtime):
    wall = {"clock": "wall", "warmdown": {"steps": 6, "of": 12}}
    report, out = train(
        tiny, inputs, tmp_path / "out", runtime, steps=10**6, expected_steps=40, budget_s=0.6, schedule=wall
    )
    assert report["ended_by"] == "budget"
    assert 0.6 <= report["seconds"] < 5
    assert report["steps"] < 10**5
    scales = [line["lr_scale"] for line in curve(out) if "lr_scale" in line]
    assert scales[0] == 1.0
    assert min(scales) < 0.5


def test_by_the_clock_horizons_follow_the_measured_speed(tiny, inputs, tmp_path, runtime):
    wall = {"clock": "wall", "warmdown": {"steps": 5, "of": 10}}
    report, out = train(tiny, inputs, tmp_path / "out", runtime, steps=10**6, budget_s=0.8, schedule=wall)
    assert 1 < report["expected_steps"] < 10**5
    # Half of the run is warmdown, whatever a step takes here; load changes the speed by less than 3.
    falling = [line["lr_scale"] < 1 for line in curve(out) if "lr_scale" in line]
    assert 1 / 6 < sum(falling) / len(falling) < 1
    # Measuring left no trace: the first step starts from the initial weights at the first token.
    _, plain = train(tiny, inputs, tmp_path / "plain", runtime)
    assert curve(out)[1]["train_loss"] == curve(plain)[1]["train_loss"]


def test_progress_is_reported_while_it_trains(tiny, inputs, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(loop, "PROGRESS_EVERY_S", 0.0)
    runtime = replace(runtime, progress=tmp_path / "progress.jsonl")
    train(tiny, inputs, tmp_path / "out", runtime)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [(line["done"], line["total"], line["unit"]) for line in lines] == [(n, 12, "steps") for n in range(1, 13)]
    assert all(line["tokens_per_s"] > 0 for line in lines)


# ---- what is refused


def test_a_rate_that_explodes_names_the_step_and_the_tensor(tiny, inputs, tmp_path, runtime):
    # Output matrices start at zero, so at first only they have a gradient: attn.o is the first to go.
    with pytest.raises(StageError, match=r"at step 2 .* first in parameter attn.o \(inf\).*lower the learning rates"):
        train(tiny, inputs, tmp_path / "out", runtime, muon={"lr": 1e38, "weight_decay": 0.0})
    assert list((tmp_path / "out").iterdir()) == []


def test_a_nan_gradient_is_named_when_the_parameters_are_finite(tiny, inputs, tmp_path, runtime, monkeypatch):
    whole = objective.cross_entropy

    def broken(logits_BTV, targets_BT):
        return whole(logits_BTV, targets_BT) * (1 + 0 * torch.log(logits_BTV[0, 0, 0] * 0))

    monkeypatch.setattr(objective, "cross_entropy", broken)
    with pytest.raises(StageError, match=r"at step 1 .* first in the loss itself \(nan\)"):
        train(tiny, inputs, tmp_path / "out", runtime, validation_tokens=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_tokens": 6000, "microbatch_tokens": 6000, "batch_tokens": 6000}, "lower train.sequence_tokens"),
        ({"validation_tokens": 6000}, "lower train.validation_tokens"),
        ({"validation_tokens": 16}, "raise train.validation_tokens"),
        ({"network": {"vocab": 32, "dim": 16, "heads": 2, "kv_heads": 1}}, "train.network.vocab is 32"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(tiny, inputs, tmp_path, runtime, changes, message):
    with pytest.raises(StageError, match=message):
        train(tiny, inputs, tmp_path / "out", runtime, **changes)


def test_no_shards_at_all_are_refused(tiny, inputs, tmp_path, runtime):
    for path in inputs["shards"].iterdir():
        path.unlink()
    with pytest.raises(StageError, match="at least one token shard"):
        train(tiny, inputs, tmp_path / "out", runtime)


def test_an_id_outside_the_vocabulary_ends_training_with_its_shard(tiny, inputs, tmp_path, runtime):
    write_shard(inputs["shards"] / "00000.bin", np.full(1000, 64, dtype=np.uint16))
    with pytest.raises(StageError, match=r"00000.bin has 64 at token 0"):
        train(tiny, inputs, tmp_path / "out", runtime)


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tiny, tmp_path, runtime):
    runtime = replace(runtime, device=Device(kind="cuda", model="H100"))
    if torch.cuda.is_available() and "H100" in torch.cuda.get_device_name():
        pytest.skip("this machine has the device")
    with pytest.raises(StageError, match="asks for"):
        train(tiny, {"shards": tmp_path / "missing", "tokenizer": tmp_path / "missing"}, tmp_path / "out", runtime)


# ---- other ways to compute


def test_bfloat16_stays_close_to_float32(tiny, inputs, tmp_path, runtime):
    exact, _ = train(tiny, inputs, tmp_path / "a", runtime)
    rounded, _ = train(tiny, inputs, tmp_path / "b", runtime, precision="bfloat16")
    assert rounded["val_loss"] == pytest.approx(exact["val_loss"], abs=0.05)
    assert rounded["val_loss"] != exact["val_loss"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("fresh_compiler")
def test_compiling_starts_from_the_same_weights_and_data(tiny, inputs, tmp_path, runtime):
    _, eager = train(tiny, inputs, tmp_path / "a", runtime)
    _, compiled = train(tiny, inputs, tmp_path / "b", runtime, compile="on")
    for a, b in zip(curve(eager), curve(compiled), strict=True):
        assert a == pytest.approx(b, abs=2e-3)
