"""The stage: what it writes, what its error table says, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from model.config import BigramConfig, GPTConfig, from_dict, to_dict
from model.gpt import GPT
from model.init import initialise
from model.quantized import Coded, dequantize_all, load_quantized
from model.weights import load_weights, save_weights
from stages.contract import Device, Runtime, StageError, with_rank
from stages.quantize.config import Config, GroupConfig
from stages.quantize.stage import run

FLOOR = 0.015  # between the smallest and the largest scale that the rows below would have
NETWORK = GPTConfig(
    vocab=128,
    layers=3,
    dim=32,
    heads=4,
    kv_heads=2,
    mlp_hidden=64,
    bigram=BigramConfig(buckets=64, dim=16),
    smear=True,
    unet_skips=True,
    residual_mix=True,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = GPT(NETWORK)
    initialise(model, 1)
    generator = torch.Generator().manual_seed(2)
    tensors = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in model.state_dict().items()}
    (tmp_path / "weights").mkdir()
    save_weights(tmp_path / "weights" / "weights.safetensors", tensors, {"network": json.dumps(to_dict(NETWORK))})
    return tmp_path / "weights"


def go(weights: Path, out: Path, runtime: Runtime, config: Config) -> tuple[dict, dict, list]:
    report = run(config, {"weights": weights}, out, runtime)
    quantized, metadata = load_quantized(out / "quantized" / "quantized.safetensors")
    assert from_dict(json.loads(metadata["network"])) == NETWORK
    return report, dict(quantized), json.loads((out / "errors" / "errors.json").read_text())


def test_every_tensor_is_stored_in_its_groups_form(weights, tmp_path, runtime):
    report, quantized, _ = go(weights, tmp_path / "out", runtime, Config(small_weights=512))
    forms = {n: t.bits if isinstance(t, Coded) else t.dtype for n, t in quantized.items()}
    assert forms["attn.q"] == forms["mlp.down"] == 6
    assert forms["embed.tokens"] == forms["bigram.embed"] == 8
    assert forms["bigram.proj"] == forms["attn.q_gain"] == forms["block.residual_mix"] == torch.float16
    assert forms["attn.k"] == torch.float16  # 16 x 32 = 512 weights per layer: small
    assert report["tensors"] == {"fp16": 14, "int6": 12, "int8": 2}
    assert (tmp_path / "out").is_dir()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["errors", "quantized"]


def test_the_error_table_is_what_a_comparison_of_the_tensors_finds(weights, tmp_path, runtime):
    report, quantized, table = go(weights, tmp_path / "out", runtime, Config(small_weights=512))
    trained, _ = load_weights(weights / "weights.safetensors")
    stored = dequantize_all(quantized)
    assert [row["name"] for row in table] == sorted(trained)
    for row in table:
        error = (stored[row["name"]] - trained[row["name"]]).double()
        assert row["mse"] == pytest.approx(error.square().mean().item(), rel=1e-9)
        assert row["max_error"] == error.abs().max().item()
        rms = trained[row["name"]].double().square().mean().sqrt().item()
        assert row["relative_rmse"] == pytest.approx(error.square().mean().sqrt().item() / rms, rel=1e-9)
    by_name = {row["name"]: row for row in table}
    assert sum(by_name["mlp.up"]["clips"].values()) == pytest.approx(1)
    assert by_name["mlp.up"]["floored_rows"] is None
    assert report["groups"]["all"]["weights"] == sum(t.numel() for t in trained.values())
    assert 0.01 < report["groups"]["matrices"]["relative_rmse"] < 0.06
    assert report["groups"]["embeddings"]["relative_rmse"] < 0.01


def test_a_floor_is_counted_by_the_rows_it_holds(weights, tmp_path, runtime):
    config = Config(small_weights=512, matrices=GroupConfig(bits=6, scale_floor=FLOOR))
    _, quantized, table = go(weights, tmp_path / "out", runtime, config)
    row = next(row for row in table if row["name"] == "mlp.up")
    at_floor = quantized["mlp.up"].scales == torch.tensor(FLOOR).half()
    assert row["floored_rows"] == at_floor.double().mean().item()
    assert 0 < row["floored_rows"] < 1


def test_fewer_bits_give_larger_errors_in_that_group_only(weights, tmp_path, runtime):
    six, _, _ = go(weights, tmp_path / "a", runtime, Config(small_weights=512))
    config = Config(small_weights=512, matrices=GroupConfig(bits=5, clip="search"))
    five, _, _ = go(weights, tmp_path / "b", runtime, config)
    assert five["groups"]["matrices"]["relative_rmse"] > 1.8 * six["groups"]["matrices"]["relative_rmse"]
    assert five["groups"]["embeddings"] == six["groups"]["embeddings"]


def test_groups_may_keep_floats_of_either_width(weights, tmp_path, runtime):
    config = Config(matrices=GroupConfig(bits=16), embeddings=GroupConfig(bits=32), small_weights=0, vector_bits=32)
    report, quantized, _ = go(weights, tmp_path / "out", runtime, config)
    trained, _ = load_weights(weights / "weights.safetensors")
    assert torch.equal(quantized["embed.tokens"], trained["embed.tokens"])
    assert torch.equal(quantized["smear.gate"], trained["smear.gate"])
    assert quantized["attn.q"].dtype == torch.float16
    assert set(report["tensors"]) == {"fp16", "fp32"}


def test_the_same_weights_give_the_same_bytes(weights, tmp_path, runtime):
    for name in ("a", "b"):
        run(Config(small_weights=512), {"weights": weights}, tmp_path / name, runtime)
    for path in ("quantized/quantized.safetensors", "errors/errors.json"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def damaged(weights: Path, name: str, value: float) -> None:
    path = weights / "weights.safetensors"
    tensors, metadata = load_weights(path)
    changed = {n: t.clone() for n, t in tensors.items()}
    changed[name].view(-1)[-1] = value
    save_weights(path, changed, metadata)


@pytest.mark.parametrize("name", ["mlp.up", "smear.gate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(weights, tmp_path, runtime, name, value):
    damaged(weights, name, value)
    with pytest.raises(StageError, match=f"{name} holds NaN or infinity"):
        run(Config(), {"weights": weights}, tmp_path / "out", runtime)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mlp.up", "smear.gate"])
def test_weights_too_large_for_fp16_are_refused_by_name(weights, tmp_path, runtime, name):
    damaged(weights, name, 1e9)
    with pytest.raises(StageError, match=rf"{name} cannot be quantised: .*65504"):
        run(Config(small_weights=512), {"weights": weights}, tmp_path / "out", runtime)


def test_damaged_weights_are_a_stage_error(weights, tmp_path, runtime):
    path = weights / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StageError, match="damaged"):
        run(Config(), {"weights": weights}, tmp_path / "out", runtime)


def test_a_device_that_is_not_there_is_refused(weights, tmp_path, runtime):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    elsewhere = Runtime(scratch=runtime.scratch, checkpoints=runtime.checkpoints, device=Device(kind="cuda"))
    with pytest.raises(StageError, match="CUDA"):
        run(Config(), {"weights": weights}, tmp_path / "out", elsewhere)


def test_more_than_one_rank_is_refused(weights, tmp_path, runtime):
    two = with_rank(replace(runtime, device=Device(count=2)), 0, 2)
    with pytest.raises(StageError, match="one device; got 2 ranks"):
        run(Config(), {"weights": weights}, tmp_path / "out", two)


def test_impossible_configurations_are_refused_at_construction():
    with pytest.raises(ValidationError, match=r"small\.bits is 16 or 32; got 8"):
        Config(small=GroupConfig(bits=8))
    with pytest.raises(ValidationError, match="search_quantiles"):
        Config(search_quantiles=(0.5, 1.5))
