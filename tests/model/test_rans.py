"""The entropy coder: exact for any shape, close to the entropy, better than it where rows and columns differ."""

from __future__ import annotations

import contextlib
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import rans


def gaussian(shape: tuple[int, ...], sigma: float = 10.0, top: int = 31, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return np.clip(np.round(sigma * noise), -top, top).astype(np.int8)


def entropy_bytes(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum() / 8)


SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 150)),
        st.tuples(st.integers(1, 9), st.integers(0, 150)),
    ),
    max_size=3,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shapes=SHAPES, bits=st.integers(2, 8), seed=st.integers(0, 2**31), wide=st.booleans())
def test_decoding_undoes_encoding_for_any_shapes_and_width(shapes, bits, seed, wide):
    half = 1 << (bits - 1)
    rng = np.random.default_rng(seed)
    sigma = half if wide else 0.3
    arrays = [np.clip(np.round(rng.normal(0, sigma, s)), -half, half - 1).astype(np.int8) for s in shapes]
    decoded = rans.decode(rans.encode(arrays, bits), shapes, bits)
    assert [a.shape for a in decoded] == list(shapes)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, decoded, strict=True))


@pytest.mark.parametrize("value", [0, -32, 31])
def test_constant_codes_cost_next_to_nothing(value):
    codes = np.full((4, 64, 64), value, np.int8)
    data = rans.encode([codes], 6)
    assert len(data) < 150
    assert np.array_equal(rans.decode(data, [codes.shape], 6)[0], codes)


def test_gaussian_codes_cost_their_entropy_plus_a_half_per_cent():
    codes = gaussian((2, 256, 512))
    assert len(rans.encode([codes], 6)) < 1.005 * entropy_bytes(codes)


def test_codes_of_eight_bits_cost_their_entropy_plus_one_per_cent():
    codes = gaussian((512, 512), sigma=40, top=127)
    assert len(rans.encode([codes], 8)) < 1.01 * entropy_bytes(codes)


@pytest.mark.parametrize("axis", [1, 2])
def test_rows_or_columns_of_different_size_cost_less_than_the_common_entropy(axis):
    shape = [1, 1, 1]
    shape[axis] = 256
    sizes = np.exp(0.4 * np.random.default_rng(1).normal(0, 1, shape))
    codes = np.clip(np.round(8 * sizes * np.random.default_rng(2).normal(0, 1, (4, 256, 256))), -31, 31).astype(np.int8)
    assert len(rans.encode([codes], 6)) < 0.99 * entropy_bytes(codes)


def test_the_same_codes_give_the_same_bytes():
    codes = gaussian((2, 30, 70))
    assert rans.encode([codes], 6) == rans.encode([codes.copy()], 6)


def test_bytes_written_by_this_version_are_the_ones_that_it_has_always_written():
    """A golden value: contexts that drift with a platform or an edit would decode old archives to wrong weights."""
    ramp = (np.arange(2 * 40 * 130).reshape(2, 40, 130) * 7919 % 63 - 31) // (1 + np.arange(130) % 5)
    data = rans.encode([ramp.astype(np.int8)], 6)
    assert (len(data), f"{zlib.crc32(data):08x}") == (6461, "c6cd3de5")


def test_lanes_and_groups_that_do_not_divide_the_shape_are_exact():
    arrays = [gaussian((3, 50, 65)), gaussian((7, 129)), gaussian((1, 1, 1))]
    decoded = rans.decode(rans.encode(arrays, 6), [a.shape for a in arrays], 6)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, decoded, strict=True))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_damage_ends_in_an_error_or_other_codes_but_never_in_a_crash(position, flip):
    """The archive's checksum stands before this; here only the kind of failure matters."""
    data = bytearray(rans.encode([gaussian((2, 20, 64))], 6))
    data[position % len(data)] ^= flip
    with contextlib.suppress(ValueError, zlib.error, struct.error):
        (decoded,) = rans.decode(bytes(data), [(2, 20, 64)], 6)
        assert decoded.shape == (2, 20, 64)


def test_cut_data_is_an_error():
    data = rans.encode([gaussian((2, 20, 64))], 6)
    for size in [0, 3, 8, 40, 400, len(data) - 2, len(data) - 1]:
        with pytest.raises((ValueError, zlib.error)):
            rans.decode(data[:size], [(2, 20, 64)], 6)
    with pytest.raises(ValueError, match="end where"):
        rans.decode(data + b"\0\0", [(2, 20, 64)], 6)


def test_context_edges_are_quarter_octaves():
    assert np.allclose(rans.EDGES, [2 ** (k / 4) for k in range(-16, 20)], rtol=0, atol=1 / 256)
    assert np.all(np.diff(rans.EDGES) > 0)
    assert all(float(edge * 256).is_integer() for edge in rans.EDGES)
    assert math.isclose(rans.EDGES[16], 1.0)
