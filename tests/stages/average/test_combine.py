"""Means of weights: exact where they must be, refused where they make no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.weights import save_weights
from stages.average.combine import mean_weights
from stages.contract import StageError


def write(folder: Path, *weights: torch.Tensor, network: str = "{}") -> list[Path]:
    paths = [folder / f"{index}.safetensors" for index in range(len(weights))]
    for path, weight in zip(paths, weights, strict=True):
        save_weights(path, {"attn.q": weight}, {"network": network})
    return paths


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    weights=arrays.arrays(np.float32, (2, 3), elements=st.floats(-(2.0**120), 2.0**120, width=32)),
    copies=st.integers(1, 13),
)
def test_the_mean_of_equal_weights_is_that_weight_bit_for_bit(tmp_path_factory, weights, copies):
    paths = write(tmp_path_factory.mktemp("equal"), *[torch.from_numpy(weights)] * copies)
    mean, metadata = mean_weights(paths)
    assert metadata == {"network": "{}"}
    assert mean["attn.q"].numpy().tobytes() == weights.tobytes()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 9))
def test_the_mean_is_numpys_in_double_precision(tmp_path_factory, seed, count):
    weights = [torch.randn(4, 5, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]
    mean, _ = mean_weights(write(tmp_path_factory.mktemp("mean"), *weights))
    want = np.mean([w.double().numpy() for w in weights], axis=0).astype(np.float32)
    np.testing.assert_allclose(mean["attn.q"].numpy(), want, rtol=1e-7)


def test_a_small_weight_beside_a_large_one_is_not_lost(tmp_path: Path):
    """In fp32 2^30 + 1 is 2^30, and in bf16 the published sum of twelve snapshots loses far more."""
    mean, _ = mean_weights(
        write(tmp_path, torch.tensor([[2.0**30]]), torch.tensor([[1.0]]), torch.tensor([[-(2.0**30)]]))
    )
    assert mean["attn.q"].item() == torch.tensor(1 / 3).item()


def test_bf16_weights_stay_bf16_but_are_summed_in_double(tmp_path: Path):
    weights = [torch.tensor([[1.0 + i / 128]]).bfloat16() for i in range(3)]
    mean, _ = mean_weights(write(tmp_path, *weights))
    assert mean["attn.q"].dtype == torch.bfloat16
    assert mean["attn.q"].item() == weights[1].item()


def test_nan_is_refused_with_the_tensors_name(tmp_path: Path):
    paths = write(tmp_path, torch.ones(2, 2), torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(StageError, match=r"attn\.q in 1\.safetensors holds NaN"):
        mean_weights(paths)


def test_networks_of_other_shape_or_configuration_have_no_mean(tmp_path: Path):
    with pytest.raises(StageError, match=r"differ in attn\.q"):
        mean_weights(write(tmp_path, torch.ones(2, 2), torch.ones(2, 3)))
    (tmp_path / "b").mkdir()
    paths = [write(tmp_path, torch.ones(2, 2))[0], write(tmp_path / "b", torch.ones(2, 2), network='{"dim": 1}')[0]]
    with pytest.raises(StageError, match="differ in configuration"):
        mean_weights(paths)


def test_damaged_weights_are_a_stage_error(tmp_path: Path):
    (path,) = write(tmp_path, torch.ones(2, 2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StageError, match="damaged"):
        mean_weights([path])
