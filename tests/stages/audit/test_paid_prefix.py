"""T13 finds validation text in every layer where it could lie, and nothing in weights."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import zstandard

from model.archive import write_archive
from model.config import GPTConfig
from model.quantized import Coded
from stages.audit import layers
from stages.audit.layers import archive_layers, code_layers, peeled
from stages.audit.paid_prefix import check_layers, val_needles
from stages.bundle.pack import pack

VOCAB = 300
NETWORK = GPTConfig(vocab=VOCAB, layers=1, dim=32, heads=2, kv_heads=1, mlp_hidden=64)


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words(0, 200)),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def words(seed: int, count: int) -> list[str]:
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwyp"))
    return [
        " ".join("".join(generator.choice(letters, generator.integers(2, 9))) for _ in range(12)) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def val(tokenizer: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    return np.array([i for line in words(1, 400) for i in [1, *tokenizer.encode(line)]], dtype=np.uint16)


@pytest.fixture(scope="module")
def find(tokenizer, val) -> Callable[..., str]:
    """Looks a set of layers through; the verdict."""
    needles = val_needles(tokenizer, val)
    return lambda layers: check_layers(needles, layers)


def prefix(tokenizer, val) -> dict[str, bytes]:
    """A paid prefix in each form that is looked for."""
    return {
        "text": tokenizer.decode(val[:700].tolist()).encode(),
        "tokens": val[:700].astype("<u2").tobytes(),
        "swapped": val[:700].astype(">u2").tobytes(),
    }


def archive(path: Path, constants: dict[str, str] | None = None, **tensors: torch.Tensor | Coded) -> Path:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-31, 32, (64, 64), generator=generator, dtype=torch.int8)
    scales = torch.rand(64, generator=generator).half()
    write_archive(path, {"mlp.up": Coded(codes, scales, 6), **tensors}, NETWORK, constants)
    return path


def test_weights_are_clean(find, tmp_path):
    noise = torch.randn(100, 100, generator=torch.Generator().manual_seed(1)).half()
    finding = find(archive_layers(archive(tmp_path / "archive.fwy", noise=noise)))
    assert finding.verdict == "pass"
    assert (finding.rule, finding.detector) == ("E4", "T13")
    assert finding.evidence["layers"] > 6


@pytest.mark.parametrize("form", ["text", "tokens", "swapped"])
def test_val_in_the_codes_of_a_tensor_is_found(find, tokenizer, val, tmp_path, form):
    data = np.frombuffer(prefix(tokenizer, val)[form], dtype=np.uint8)
    data = data[: len(data) // 2 * 2].astype(np.int8).reshape(2, -1)
    hidden = Coded(torch.from_numpy(data.copy()), torch.ones(2).half(), 8)
    finding = find(archive_layers(archive(tmp_path / "archive.fwy", hidden=hidden)))
    assert finding.verdict == "fail"
    assert any("hidden" in each["layer"] for each in finding.evidence["found"])


def test_val_as_whole_numbers_in_a_float_tensor_is_found(find, val, tmp_path):
    hidden = torch.from_numpy(val[:800].astype(np.float16))
    assert find(archive_layers(archive(tmp_path / "archive.fwy", hidden=hidden))).verdict == "fail"


def test_val_in_the_constants_is_found(find, tokenizer, val, tmp_path):
    text = prefix(tokenizer, val)["text"].decode()
    assert find(archive_layers(archive(tmp_path / "archive.fwy", {"note": text}))).verdict == "fail"


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_val_under_compressors_of_a_foreign_archive_is_found(find, tokenizer, val, tmp_path, compress):
    path = tmp_path / "model.bin"
    path.write_bytes(compress(compress(b"weights" * 40 + prefix(tokenizer, val)["tokens"])))
    finding = find(archive_layers(path))
    assert finding.verdict == "fail"
    assert finding.evidence["found"][0]["layer"].count(">") == 2


def test_val_in_a_literal_of_the_code_is_found(find, tokenizer, val, tmp_path):
    code = tmp_path / "train_gpt.py"
    blob = base64.b85encode(zlib.compress(prefix(tokenizer, val)["text"])).decode()
    code.write_text(f"import zlib, base64\nX = zlib.decompress(base64.b85decode({blob!r}))\n", encoding="utf-8")
    assert find(code_layers(code)).verdict == "fail"
    code.write_text("import torch\n" + "\n".join(f"# {line}" for line in words(7, 90)), encoding="utf-8")
    assert find(code_layers(code)).verdict == "pass"


def test_val_in_a_program_that_our_bundle_has_packed_is_found(find, tokenizer, val, tmp_path):
    """Packed code is one long number in 92 digits: what it holds is looked at as the source that it is."""
    code, hidden = tmp_path / "train_gpt.py", prefix(tokenizer, val)
    lines = "\n".join(f"def f{i}():\n return {line!r}" for i, line in enumerate(words(7, 40)))
    for data in (repr(hidden["text"].decode()), repr(base64.b85encode(hidden["tokens"]).decode())):
        code.write_text(pack(f"{lines}\nX = {data}\n"), encoding="utf-8")
        finding = find(code_layers(code))
        assert finding.verdict == "fail"
        assert "base92" in finding.evidence["found"][0]["layer"]
    code.write_text(pack(lines), encoding="utf-8")
    assert find(code_layers(code)).verdict == "pass"


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", data)
    return out.getvalue()


COMPRESSORS = [zlib.compress, gzip.compress, bz2.compress, lzma.compress, zstandard.compress, zipped]


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_a_bomb_is_opened_no_further_than_the_limit(monkeypatch, compress):
    monkeypatch.setattr(layers, "MAX_LAYER_BYTES", 100_000)
    opened = [data for _, data in peeled("bomb", compress(b"\0" * 1_000_000))]
    assert opened
    assert max(map(len, opened)) == 100_000


@pytest.mark.parametrize("compress", COMPRESSORS[:4])
def test_what_lies_behind_a_stream_hides_nothing(find, tokenizer, val, compress):
    """Bytes that no decompressor reads, and a second stream behind the first."""
    hidden = compress(prefix(tokenizer, val)["text"])
    for data in (hidden + b"garbage", compress(b"weights" * 40) + hidden):
        assert find(peeled("model.bin", data)).verdict == "fail"


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_a_damaged_stream_is_no_error(compress):
    packed = bytearray(compress(b"some weights " * 500))
    packed[len(packed) // 2] ^= 0xFF
    list(peeled("model.bin", bytes(packed)))
    list(peeled("model.bin", bytes(packed[: len(packed) // 2])))


def test_filling_that_val_has_too_is_no_text(tokenizer):
    filling = np.array([i for _ in range(50) for i in [1, *tokenizer.encode("-" * 200 + "=" * 200)]], dtype=np.uint16)
    filled = [("zeros", b"-" * 5000), ("rule", b"=" * 5000)]
    assert check_layers(val_needles(tokenizer, filling), filled).verdict == "pass"


def test_evidence_is_json(find, tmp_path):
    json.dumps(find(archive_layers(archive(tmp_path / "archive.fwy"))).to_dict())
