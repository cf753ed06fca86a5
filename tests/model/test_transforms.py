"""Chains of steps: exact, in one order only, and readable from their own description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.transforms import (
    Chain,
    FloatPatterns,
    Integers,
    Lzma,
    Packed,
    Planes,
    Rans,
    Xz,
    Zlib,
    Zstd,
    chain_from_json,
    chain_to_json,
)

INTEGER_CHAINS = [
    Chain(Integers(), codes, smaller)
    for codes in (Packed(5), Planes(1), Rans(5))
    for smaller in ((), (Zstd(3),), (Lzma(),), (Xz(6),), (Zlib(9),), (Zstd(1), Lzma(lc=1)))
]
SHAPES = st.lists(st.lists(st.integers(0, 7), min_size=0, max_size=3).map(tuple), max_size=4)


@pytest.mark.parametrize("chain", INTEGER_CHAINS, ids=lambda chain: ">".join(chain.names))
@settings(max_examples=20, deadline=None, derandomize=True)
@given(shapes=SHAPES, seed=st.integers(0, 2**31))
def test_every_chain_of_codes_is_exact_for_any_shapes(chain, shapes, seed):
    rng = np.random.default_rng(seed)
    tensors = [torch.from_numpy(rng.integers(-16, 16, shape).astype(np.int8)) for shape in shapes]
    decoded = chain.decode(chain.encode(tensors), shapes)
    assert [tuple(t.shape) for t in decoded] == list(shapes)
    assert all(torch.equal(a, b) and b.dtype == torch.int8 for a, b in zip(tensors, decoded, strict=True))


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 16), (torch.float32, 32)])
@pytest.mark.parametrize("smaller", [(), (Zstd(),), (Lzma(),), (Xz(),), (Zlib(),)])
def test_float_patterns_keep_every_bit(dtype, bits, smaller):
    patterns = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 41), dtype=torch.int64)
    floats = patterns.to(torch.int16 if bits == 16 else torch.int32).view(dtype)  # NaN payloads too
    chain = Chain(FloatPatterns(bits), Planes(bits // 8), smaller)
    (decoded,) = chain.decode(chain.encode([floats]), [(3, 41)])
    assert decoded.dtype == dtype
    assert decoded.contiguous().view(torch.uint8).equal(floats.view(torch.uint8))


def test_planes_put_the_top_bytes_first_on_every_machine():
    assert Planes(2).encode([np.array([0x0102, -2], np.int16)]) == bytes([0x01, 0xFF, 0x02, 0xFE])


WRONG: list[tuple[Any, Any, tuple[Any, ...]]] = [
    (Packed(6), Integers(), ()),  # codes before tensor
    (Integers(), Zstd(), ()),  # bytes before codes
    (Integers(), Packed(6), (Packed(6),)),  # codes after bytes
    (Integers(), Packed(6), (Zstd(), Integers())),
    (Zstd(), Packed(6), ()),
]


@pytest.mark.parametrize(("tensor", "codes", "smaller"), WRONG)
def test_a_wrong_order_is_an_error_before_any_data_moves(tensor, codes, smaller):
    with pytest.raises(TypeError, match=r"in place of (TensorStep|CodeStep|ByteStep)"):
        Chain(tensor, codes, smaller)


@pytest.mark.parametrize("chain", [*INTEGER_CHAINS, Chain(FloatPatterns(32), Planes(4), (Lzma(lc=3),))])
def test_a_chain_survives_its_description(chain):
    assert chain_from_json(chain_to_json(chain)) == chain


@pytest.mark.parametrize(
    "raw", [[["Nope", {}]], [["Zstd", {}], ["Zstd", {}]], [["Integers", {"x": 1}], ["Planes", {}]]]
)
def test_a_description_of_no_chain_is_refused(raw):
    with pytest.raises((KeyError, TypeError)):
        chain_from_json(raw)


def test_tensors_of_another_type_are_refused():
    with pytest.raises(TypeError, match="int8"):
        Integers().encode(torch.zeros(2))
    with pytest.raises(TypeError, match="float16"):
        FloatPatterns(16).encode(torch.zeros(2))


def test_data_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 codes of 2 bytes; got 5 bytes"):
        Planes(2).decode(b"12345", [(3,)])
