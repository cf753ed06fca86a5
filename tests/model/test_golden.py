"""Files written once, by version 1 of each format: they decode to the same values for as long as it is version 1."""

from __future__ import annotations

from pathlib import Path

import torch

from model.archive import list_sections, read_quantized
from model.config import GPTConfig
from model.quantized import Coded, equal
from model.weights import load_weights

GOLDEN = Path(__file__).parent / "golden"


def ramp(shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Codes that use the whole range, some columns smaller than others."""
    index = torch.arange(torch.Size(shape).numel())
    half = 1 << (bits - 1)
    codes = index * 7919 % (2 * half - 1) - (half - 1)
    return codes.div(1 + index % 5, rounding_mode="floor").to(torch.int8).reshape(shape)


def test_an_archive_of_version_1_decodes_to_what_went_in():
    """int6 through Rans, int8 through Lzma, int5 through Packed, floats through Zstd."""
    quantized, config, constants = read_quantized(GOLDEN / "archive_v1.fwy")
    want = {
        "attn.q": Coded(ramp((2, 24, 40), 6), (torch.arange(1, 49) / 256).half().reshape(2, 24), 6),
        "embed.tokens": Coded(ramp((32, 40), 8), (torch.arange(1, 33) / 2048).half(), 8),
        "mlp.up": Coded(ramp((2, 8, 16), 5), (torch.arange(1, 17) / 16).half().reshape(2, 8), 5),
        "smear.gate": (torch.arange(-20, 20) / 8).half(),
        "skip.weights": (torch.arange(-15, 15) / 4).reshape(3, 10),
    }
    assert equal(quantized, want)
    assert config == GPTConfig(vocab=32, layers=2, dim=40, heads=2, kv_heads=1, mlp_hidden=16)
    assert constants == {"horizon_chunks": 1893}
    steps = {step for section in list_sections(GOLDEN / "archive_v1.fwy") for step in section.chain.names}
    assert steps == {"Integers", "FloatPatterns", "Packed", "Planes", "Rans", "Zstd", "Lzma"}


def test_a_weights_file_of_version_1_loads_what_was_saved():
    tensors, metadata = load_weights(GOLDEN / "weights_v1.safetensors")
    assert metadata == {"network": "{}"}
    assert torch.equal(tensors["a"], (torch.arange(-7, 8) / 16).reshape(3, 5))
    assert torch.equal(tensors["b"], torch.arange(7).bfloat16())
    assert torch.equal(tensors["c"], torch.tensor([True, False]))
