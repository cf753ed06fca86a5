"""Quantised tensors: what may be one, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.quantized import Coded, dequantize_all, equal, load_quantized, save_quantized
from model.weights import FormatError, load_weights, save_weights


def sample() -> dict[str, Coded | torch.Tensor]:
    codes = torch.arange(-12, 12, dtype=torch.int8).reshape(2, 3, 4)
    scales = torch.linspace(0.1, 0.6, 6).half().reshape(2, 3)
    return {"attn.q": Coded(codes, scales, 6), "smear.gate": torch.tensor([1.0, -0.0]).half(), "x": torch.ones(2)}


def test_dequantising_multiplies_each_row_by_its_scale():
    q = sample()["attn.q"]
    assert isinstance(q, Coded)
    tensors = dequantize_all(sample())
    for layer in range(2):
        for row in range(3):
            want = q.codes[layer, row].float() * float(q.scales[layer, row])
            assert torch.equal(tensors["attn.q"][layer, row], want)
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_the_file_gives_back_what_was_saved(tmp_path: Path):
    save_quantized(tmp_path / "q", sample(), {"network": "{}"})
    quantized, metadata = load_quantized(tmp_path / "q")
    assert equal(quantized, sample())
    assert metadata == {"network": "{}"}


def test_equality_sees_one_code_one_scale_bit_width_name_kind_and_sign_of_zero():
    def changed(name: str, value: Coded | torch.Tensor) -> dict[str, Coded | torch.Tensor]:
        return {**sample(), name: value}

    q = sample()["attn.q"]
    assert isinstance(q, Coded)
    codes, scales = q.codes.clone(), q.scales.clone()
    codes[0, 0, 0] += 1
    scales[1, 2] *= 2
    assert equal(sample(), sample())
    assert not equal(sample(), changed("attn.q", Coded(codes, q.scales, 6)))
    assert not equal(sample(), changed("attn.q", Coded(q.codes, scales, 6)))
    assert not equal(sample(), changed("attn.q", Coded(q.codes, q.scales, 7)))
    assert not equal(sample(), changed("attn.q", q.dequantize()))
    assert not equal(sample(), changed("smear.gate", torch.tensor([1.0, 0.0]).half()))
    assert not equal(sample(), changed("y", torch.ones(2)))


@pytest.mark.parametrize(
    ("codes", "scales", "bits", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2).half(), 6, "codes are int8"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(2), 6, "scales float16"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(3).half(), 6, r"scales \[..., R\]"),
        (torch.zeros(3, dtype=torch.int8), torch.zeros(()).half(), 6, r"codes \[..., R, C\]"),
        (torch.full((1, 1), 32, dtype=torch.int8), torch.zeros(1).half(), 6, r"\[-32, 32\)"),
        (torch.zeros(1, 1, dtype=torch.int8), torch.zeros(1).half(), 9, "2 to 8 bits"),
    ],
)
def test_what_is_no_grid_of_codes_is_refused(codes, scales, bits, message):
    with pytest.raises(ValueError, match=message):
        Coded(codes, scales, bits)


def test_a_file_of_another_kind_or_with_missing_scales_is_our_error(tmp_path: Path):
    save_weights(tmp_path / "plain", {"a": torch.ones(2)})
    with pytest.raises(FormatError, match="as `quantize` writes them"):
        load_quantized(tmp_path / "plain")
    save_quantized(tmp_path / "q", sample())
    tensors, metadata = load_weights(tmp_path / "q")
    del tensors["attn.q.scales"]
    save_weights(tmp_path / "cut", tensors, metadata)
    with pytest.raises(FormatError, match=r"attn\.q\.scales"):
        load_quantized(tmp_path / "cut")
