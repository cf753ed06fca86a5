"""The stage: the archive is what was quantised, and smaller than what the published runs would store."""

from __future__ import annotations

import json
import lzma
import zlib
from pathlib import Path

import pytest
import torch
import zstandard
from pydantic import ValidationError
from trained import coded, coded_network, published_blob, trained_like, trained_network

from model.archive import list_sections, read_archive, read_quantized
from model.config import GPTConfig, to_dict
from model.quantized import Coded, Quantized, dequantize_all, equal, save_quantized
from model.transforms import Lzma, Rans, Xz, Zlib, Zstd
from stages.compress import stage
from stages.compress.config import Config
from stages.compress.stage import run
from stages.contract import StageError

NETWORK = GPTConfig(layers=4, dim=256, heads=4, kv_heads=2, mlp_hidden=768)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "quantized").mkdir()
    return tmp_path / "quantized"


def store(folder: Path, quantized: Quantized, network: str = json.dumps(to_dict(NETWORK))) -> dict[str, Path]:
    save_quantized(folder / "quantized.safetensors", quantized, {"network": network} if network else {})
    return {"quantized": folder}


def small() -> dict[str, Coded | torch.Tensor]:
    return {"a": coded(trained_like((2, 16, 40), 0.2, 0.1, seed=1), 6), "b": torch.linspace(-2, 2, 99).half()}


def test_the_archive_is_two_per_cent_smaller_than_the_published_formats(folder, tmp_path, runtime):
    quantized = coded_network(trained_network(layers=4, dim=256))
    report = run(Config(), store(folder, quantized), tmp_path / "out", runtime)
    assert report["archive_bytes"] == (tmp_path / "out" / "archive" / "archive.fwy").stat().st_size
    weights = sum(t.codes.numel() for t in quantized.values() if isinstance(t, Coded))
    assert weights > 2_000_000
    blob = published_blob(quantized)
    assert report["archive_bytes"] <= 0.98 * len(zstandard.ZstdCompressor(level=22).compress(blob))
    assert report["archive_bytes"] <= 0.98 * len(lzma.compress(blob, preset=6))
    decoded, _, _ = read_quantized(tmp_path / "out" / "archive" / "archive.fwy")
    assert equal(decoded, quantized)


def test_what_scoring_reads_is_the_dequantised_network(folder, tmp_path, runtime):
    run(Config(constants={"horizon_chunks": 7}), store(folder, small()), tmp_path / "out", runtime)
    tensors, config, constants = read_archive(tmp_path / "out" / "archive" / "archive.fwy")
    assert config == NETWORK
    assert constants == {"horizon_chunks": 7}
    assert all(torch.equal(tensors[name], want) for name, want in dequantize_all(small()).items())


@pytest.mark.parametrize(("codec", "step"), [("zstd", Zstd), ("lzma", Lzma), ("rans", Rans)])
def test_a_codec_that_is_asked_for_is_the_one_used(folder, tmp_path, runtime, codec, step):
    report = run(Config(codec=codec, level=3), store(folder, small()), tmp_path / "out", runtime)
    sections = list_sections(tmp_path / "out" / "archive" / "archive.fwy")
    codes = next(section for section in sections if section.kind == "codes")
    assert any(isinstance(s, step) for s in (codes.chain.codes, *codes.chain.bytes))
    if codec == "zstd":
        assert all(section.chain.bytes == (Zstd(3),) for section in sections)
    assert [row["label"] for row in report["sections"]] == ["int6 codes", "fp16 tensors", "row scales"]
    assert sum(row["weights"] for row in report["sections"]) == 2 * 16 * 40 + 99 + 2 * 16


@pytest.mark.parametrize(
    ("codec", "level", "step", "decode"),
    [("xz", 6, Xz(6), lzma.decompress), ("zlib", 9, Zlib(9), zlib.decompress)],
)
def test_a_published_codec_writes_what_its_library_reads(folder, tmp_path, runtime, codec, level, step, decode):
    run(Config(codec=codec, level=level), store(folder, small()), tmp_path / "out", runtime)
    path = tmp_path / "out" / "archive" / "archive.fwy"
    sections = list_sections(path)
    assert {section.chain.bytes for section in sections} == {(step,)}
    assert equal(read_quantized(path)[0], small())
    want = small()["a"]
    assert isinstance(want, Coded)
    assert decode(step.encode(want.codes.numpy().tobytes())) == want.codes.numpy().tobytes()


@pytest.mark.parametrize(("codec", "level"), [("xz", 10), ("zlib", 22), ("zstd", 0), ("auto", 0)])
def test_a_level_that_a_codec_does_not_have_is_refused(codec, level):
    with pytest.raises(ValidationError, match=rf"codec '{codec}' has levels .*compress\.level is {level}"):
        Config(codec=codec, level=level)


def test_auto_is_never_larger_than_one_codec(folder, tmp_path, runtime):
    inputs = store(folder, small())
    sizes = {
        codec: run(Config(codec=codec), inputs, tmp_path / codec, runtime)["archive_bytes"]
        for codec in ("auto", "zstd", "lzma", "rans")
    }
    assert min(sizes.values()) == sizes["auto"]


def test_the_same_input_gives_the_same_bytes(folder, tmp_path, runtime):
    inputs = store(folder, small())
    for name in ("a", "b"):
        run(Config(), inputs, tmp_path / name, runtime)
    files = [tmp_path / name / "archive" / "archive.fwy" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["archive"]


def test_an_archive_that_does_not_decode_to_its_input_stops_the_stage(folder, tmp_path, runtime, monkeypatch):
    def wrong(path: Path):
        quantized, config, constants = read_quantized(path)
        a = quantized["a"]
        assert isinstance(a, Coded)
        scales = a.scales.clone()
        scales[1, 15] = torch.nextafter(scales[1, 15], torch.tensor(9.0).half())  # one bit of one scale
        return {**quantized, "a": Coded(a.codes, scales, a.bits)}, config, constants

    monkeypatch.setattr(stage, "read_quantized", wrong)
    with pytest.raises(RuntimeError, match="does not decode"):
        run(Config(), store(folder, small()), tmp_path / "out", runtime)


def test_damaged_or_foreign_input_is_a_stage_error(folder, tmp_path, runtime):
    with pytest.raises(StageError, match="network"):
        run(Config(), store(folder, small(), network=""), tmp_path / "a", runtime)
    with pytest.raises(StageError, match="no field"):
        run(Config(), store(folder, small(), network='{"nope": 1}'), tmp_path / "b", runtime)
    path = folder / "quantized.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StageError, match="damaged"):
        run(Config(), {"quantized": folder}, tmp_path / "c", runtime)
