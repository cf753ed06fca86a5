"""The archive: what goes in comes out bit for bit, equal content gives equal bytes, and no damage passes."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import archive
from model.archive import (
    CHECKSUM,
    PREFIX,
    all_chains,
    list_sections,
    read_archive,
    read_quantized,
    smallest_chain,
    write_archive,
)
from model.config import BigramConfig, GPTConfig
from model.grid import Grid, choose_scales, quantize
from model.quantized import Coded, dequantize_all, equal
from model.transforms import Chain
from model.weights import FormatError

CONFIG = GPTConfig(vocab=64, layers=2, dim=16, heads=2, kv_heads=1, mlp_hidden=32, bigram=BigramConfig(buckets=8))


def coded(*shape: int, bits: int = 6, seed: int = 0) -> Coded:
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    grid = Grid(bits=bits)
    scales = choose_scales(w.abs().amax(-1), grid)
    return Coded(quantize(w, scales, grid), scales, bits)


def sample() -> dict[str, Coded | torch.Tensor]:
    return {
        "attn.q": coded(2, 16, 16),
        "mlp.up": coded(2, 32, 16, bits=5),
        "embed.tokens": coded(64, 16, bits=8),
        "smear.gate": torch.linspace(-1, 1, 16).half(),
        "bigram.scale": torch.tensor(0.05).half(),
        "block.attn_scale": torch.tensor([[1.0, -0.0, float("nan")], [1e30, 3.0, 4.0]]),
        "skip.weights": torch.zeros(0, 16).half(),
    }


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "model.fwy"
    write_archive(path, {"a": coded(40, 8), "b": torch.ones(3).half()}, CONFIG)
    return path.read_bytes()


def test_codes_scales_and_floats_come_back_bit_for_bit_with_config_and_constants(tmp_path: Path):
    write_archive(tmp_path / "a", sample(), CONFIG, {"horizon_chunks": 1893, "names": ["x"]})
    quantized, config, constants = read_quantized(tmp_path / "a")
    assert equal(quantized, sample())
    assert config == CONFIG
    assert constants == {"horizon_chunks": 1893, "names": ["x"]}


def test_reading_dequantises_to_fp32(tmp_path: Path):
    write_archive(tmp_path / "a", sample(), CONFIG)
    tensors, _, _ = read_archive(tmp_path / "a")
    for name, want in dequantize_all(sample()).items():
        assert tensors[name].dtype == torch.float32
        assert torch.equal(tensors[name].nan_to_num(7), want.nan_to_num(7))


def test_equal_content_gives_equal_bytes_whatever_its_order(tmp_path: Path):
    write_archive(tmp_path / "a", sample(), CONFIG, {"a": 1, "b": 2})
    write_archive(tmp_path / "b", dict(reversed(sample().items())), CONFIG, {"b": 2, "a": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("index", range(8))
def test_every_chain_alone_is_exact(tmp_path: Path, index: int):
    def one(kind: str, bits: int) -> list[Chain]:
        chains = all_chains(kind, bits)
        return [chains[index % len(chains)]]

    write_archive(tmp_path / "a", sample(), CONFIG, chains=one)
    assert equal(read_quantized(tmp_path / "a")[0], sample())


def test_the_smallest_chain_is_kept_for_each_section(tmp_path: Path):
    best = {(s.kind, s.bits): s.bytes for s in write_archive(tmp_path / "a", sample(), CONFIG)}

    def check(kind: str, bits: int) -> list[Chain]:
        tensors = [t.codes for t in sample().values() if isinstance(t, Coded) and (kind, t.bits) == ("codes", bits)]
        if tensors:
            assert min(len(chain.encode(tensors)) for chain in all_chains(kind, bits)) == best[kind, bits]
        return all_chains(kind, bits)

    write_archive(tmp_path / "b", sample(), CONFIG, chains=check)


def test_a_large_section_is_judged_on_the_first_rows_of_each_tensor(monkeypatch):
    noise = torch.randint(-31, 32, (2, 64, 32), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    noise[:, 16:] = 0  # the whole would go to lzma, which stores one run of zeros
    chains = all_chains("codes", 6)
    whole = min(chains, key=lambda chain: len(chain.encode([noise])))
    first = min(chains, key=lambda chain: len(chain.encode([noise[:, :16]])))
    assert whole != first
    assert smallest_chain(chains, [noise]) == whole
    monkeypatch.setattr(archive, "SAMPLE_NUMBERS", noise.numel() // 4)
    assert smallest_chain(chains, [noise]) == first


def test_the_section_table_accounts_for_every_tensor_and_byte(tmp_path: Path):
    written = write_archive(tmp_path / "a", sample(), CONFIG)
    assert list_sections(tmp_path / "a") == written
    header_bytes = PREFIX.unpack_from((tmp_path / "a").read_bytes())[2]
    overhead = PREFIX.size + header_bytes + CHECKSUM.size
    assert sum(section.bytes for section in written) + overhead == (tmp_path / "a").stat().st_size
    assert [s.label for s in written] == [
        "int5 codes", "int6 codes", "int8 codes", "fp16 tensors", "fp32 tensors", "row scales"
    ]  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_flipped_byte_is_always_our_error(small_archive: bytes, tmp_path_factory, position: int, flip: int):
    path = tmp_path_factory.mktemp("flip") / "model.fwy"
    raw = bytearray(small_archive)
    raw[position % len(raw)] ^= flip
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"model\.fwy"):
        read_archive(path)


def test_an_archive_cut_anywhere_or_with_more_behind_it_is_our_error(tmp_path: Path):
    path = tmp_path / "model.fwy"
    write_archive(path, {"a": coded(8, 8)}, CONFIG)
    raw = path.read_bytes()
    for damaged in [*(raw[:size] for size in range(len(raw))), raw + b"\0", raw * 2]:
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"model\.fwy"):
            read_quantized(path)


def test_a_missing_archive_is_our_error(tmp_path: Path):
    with pytest.raises(FormatError, match=r"none\.fwy"):
        list_sections(tmp_path / "none.fwy")


def resealed(raw: bytes) -> bytes:
    return raw + CHECKSUM.pack(zlib.crc32(raw))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(position=st.integers(4, 10**6), flip=st.integers(1, 255))
def test_damage_under_a_valid_checksum_is_our_error_or_decodes(
    small_archive: bytes, tmp_path_factory, position: int, flip: int
):
    """A crafted file: the checksum no longer helps, and still nothing but FormatError may come out."""
    path = tmp_path_factory.mktemp("craft") / "model.fwy"
    raw = bytearray(small_archive[: -CHECKSUM.size])
    raw[4 + (position - 4) % (len(raw) - 4)] ^= flip
    path.write_bytes(resealed(bytes(raw)))
    with contextlib.suppress(FormatError):
        read_archive(path)


@pytest.mark.parametrize("index", range(4))
def test_a_section_that_does_not_decode_under_a_valid_checksum_is_our_error(tmp_path: Path, index: int):
    """One section of codes through one chain, its bytes all replaced."""

    def chains(kind: str, bits: int) -> list[Chain]:
        return all_chains(kind, bits)[index:][:1] or all_chains(kind, bits)

    path = tmp_path / "model.fwy"
    (codes, _) = write_archive(path, {"a": coded(40, 8)}, CONFIG, chains=chains)
    raw = path.read_bytes()[: -CHECKSUM.size]
    start = PREFIX.size + PREFIX.unpack_from(raw)[2]
    path.write_bytes(resealed(raw[:start] + b"\xff" * codes.bytes + raw[start + codes.bytes :]))
    if codes.chain.names[1] == "Packed":
        read_archive(path)  # any bits are codes: only the checksum stands between
        return
    with pytest.raises(FormatError, match="a section does not decode"):
        read_archive(path)


def test_another_version_says_so(tmp_path: Path):
    write_archive(tmp_path / "a", sample(), CONFIG)
    raw = bytearray((tmp_path / "a").read_bytes()[: -CHECKSUM.size])
    raw[4] += 1
    (tmp_path / "a").write_bytes(resealed(bytes(raw)))
    with pytest.raises(FormatError, match="version is 2 and this code reads version 1"):
        read_archive(tmp_path / "a")
