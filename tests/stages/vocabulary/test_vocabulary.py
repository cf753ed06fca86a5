"""The tokenizer: the challenge's options, the same bytes for the same documents, and imports that fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.bytes import ByteTable
from stages.contract import Runtime, StageError
from stages.vocabulary import sample
from stages.vocabulary.config import Config
from stages.vocabulary.sample import Sample, sentences
from stages.vocabulary.stage import run

Go = Callable[..., tuple[dict, Path]]


def words(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(count))


TEXTS = [f"{words(i % 40, 60)} number {i * 7919}\nsecond line é" for i in range(300)]


def shard(folder: Path, texts: list[str], name: str = "00000.parquet", group: int = 50) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table({"id": [str(i) for i in range(len(texts))], "text": texts})
    pq.write_table(table, folder / name, row_group_size=group, use_dictionary=False)
    return folder


@pytest.fixture
def go(tmp_path: Path, runtime: Runtime) -> Go:
    """Run the stage: (report, folder of the tokenizer)."""
    number = 0

    def run_stage(inputs: dict[str, Path], **config) -> tuple[dict, Path]:
        nonlocal number
        number += 1
        out = tmp_path / f"out{number}"
        out.mkdir()
        return run(Config(**config), inputs, out, runtime), out / "tokenizer"

    return run_stage


def test_a_trained_model_has_the_challenges_layout_and_normalisation(go: Go, tmp_path: Path):
    report, folder = go({"documents": shard(tmp_path / "in", TEXTS)}, size=400)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert (pieces.pad_id(), pieces.bos_id(), pieces.eos_id(), pieces.unk_id()) == (0, 1, 2, 3)
    assert [pieces.id_to_piece(4 + i) for i in (0, 255)] == ["<0x00>", "<0xFF>"]
    assert pieces.vocab_size() == report["pieces"] == 400
    assert report["sample_documents"] == 300
    assert not pieces.encode("abc", out_type=str)[0].startswith("▁")
    assert pieces.decode(pieces.encode("ﬁne  ①\n中文")) == "fine 1 中文"
    longest_digits = max(sum(c.isdigit() for c in pieces.id_to_piece(i)) for i in range(260, 400))
    assert longest_digits == 1


def test_the_byte_table_is_the_models(go: Go, tmp_path: Path):
    _, folder = go({"documents": shard(tmp_path / "in", TEXTS)}, size=400)
    saved, made = ByteTable.load(folder / "bytes.npy"), ByteTable.from_sentencepiece(folder / "tokenizer.model")
    for name in ("base", "leading_space", "boundary"):
        assert np.array_equal(getattr(saved, name), getattr(made, name))


def test_the_same_documents_give_the_same_bytes_and_no_path(go: Go, tmp_path: Path):
    first = go({"documents": shard(tmp_path / "in", TEXTS)}, size=400)[1]
    second = go({"documents": shard(tmp_path / "elsewhere", TEXTS)}, size=400)[1]
    for name in ("tokenizer.model", "bytes.npy"):
        raw = (first / name).read_bytes()
        assert raw == (second / name).read_bytes()
        assert str(tmp_path).encode() not in raw
    other = go({"documents": shard(tmp_path / "other", TEXTS[:200])}, size=400)[1]
    assert (other / "tokenizer.model").read_bytes() != (first / "tokenizer.model").read_bytes()


def test_how_documents_lie_in_shards_does_not_matter(go: Go, tmp_path: Path):
    whole = go({"documents": shard(tmp_path / "in", TEXTS)}, size=400)[1]
    halves = shard(shard(tmp_path / "halves", TEXTS[:120]), TEXTS[120:], "00001.parquet", group=31)
    assert (go({"documents": halves}, size=400)[1] / "tokenizer.model").read_bytes() == (
        whole / "tokenizer.model"
    ).read_bytes()


def test_the_sample_is_even_and_of_its_size(tmp_path: Path):
    texts = [f"{i:06d} {words(i, 20)}" for i in range(2_000)]
    total = sum(len(t.encode()) for t in texts)
    for group in (100, 1_000):
        taken = Sample()
        folder = shard(tmp_path / f"in{group}", texts, group=group)
        lines = list(sentences(folder, total // 10, taken))
        assert taken.documents == len(lines)
        assert 0.08 * total < taken.bytes < 0.13 * total
        positions = [int(line[:6]) for line in lines]
        quarters = np.histogram(positions, bins=4, range=(0, 2_000))[0]
        assert quarters.min() > 0.8 * quarters.max()
    assert list(sentences(tmp_path / "in100", 2 * total, Sample())) == texts


def test_only_a_bounded_part_of_a_large_corpus_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def counted(self, group, **options):
        read.append(group)
        return whole(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    folder = shard(tmp_path / "in", [words(i, 3) for i in range(1_000)], group=2)
    assert list(sentences(folder, 1_000, Sample()))
    assert len(read) == sample.MAX_ROW_GROUPS
    assert read[-1] > 450


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab é\n\0\u2028", max_size=120), limit=st.integers(4, 30))
def test_sentences_lose_no_word_and_stay_short(text: str, limit: int):
    before = sample.MAX_SENTENCE_BYTES
    sample.MAX_SENTENCE_BYTES = limit
    try:
        found = list(sample._sentences(text))
    finally:
        sample.MAX_SENTENCE_BYTES = before
    assert " ".join(found).split() == text.replace("\0", " ").split()
    longest_word = max((len(word.encode()) for word in text.split()), default=0)
    assert all(len(s.encode()) <= max(limit, longest_word) for s in found)
    assert not any("\0" in s or "\n" in s for s in found)


@pytest.mark.parametrize(("texts", "size"), [(["only a few words"], 1024), (["x"], 264)])
def test_too_small_a_corpus_says_so(go: Go, tmp_path: Path, texts: list[str], size: int):
    with pytest.raises(StageError, match=f"a vocabulary of {size} pieces needs enough text"):
        go({"documents": shard(tmp_path / "in", texts)}, size=size)
    assert not (tmp_path / "out1" / "tokenizer").exists()


def test_a_vocabulary_cannot_be_trained_on_tokens(go: Go, tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "00000.bin").write_bytes(b"")
    with pytest.raises(StageError, match=r"holds tokens; name the tokenizer .* vocabulary\.model"):
        go({"documents": tmp_path / "in"})


@pytest.fixture
def made(go: Go, tmp_path: Path) -> bytes:
    """A `.model` of 300 pieces."""
    return (go({"documents": shard(tmp_path / "in", TEXTS)}, size=300)[1] / "tokenizer.model").read_bytes()


def test_an_imported_model_keeps_its_bytes(go: Go, tmp_path: Path, made: bytes):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "some name.model").write_bytes(made)
    with fsspec.open("memory://vocabulary/x.model", "wb") as file:
        file.write(made)
    for inputs, url in (
        ({"model": folder}, "ignored"),
        ({}, str(folder / "some name.model")),
        ({}, "memory://vocabulary/x.model"),
    ):
        report, tokenizer = go(inputs, model=url, size=300)
        assert (tokenizer / "tokenizer.model").read_bytes() == made
        assert ByteTable.load(tokenizer / "bytes.npy").vocab == report["pieces"] == 300


def test_a_model_of_another_size_is_refused(go: Go, tmp_path: Path, made: bytes):
    path = tmp_path / "x.model"
    path.write_bytes(made)
    with pytest.raises(StageError, match=r"x\.model has 300, the recipe says 1024; set vocabulary\.size to 300"):
        go({}, model=str(path))


def test_what_is_no_model_is_refused(go: Go, tmp_path: Path):
    (tmp_path / "x.model").write_bytes(b"not a model")
    with pytest.raises(StageError, match=r"SentencePiece \.model file; x\.model does not load"):
        go({}, model=str(tmp_path / "x.model"))
    with pytest.raises(StageError, match=r"must be readable; .*y\.model"):
        go({}, model=str(tmp_path / "y.model"))
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a").touch()
    (folder / "b").touch()
    with pytest.raises(StageError, match=r"holds one \.model file; got 2 files"):
        go({"model": folder}, model="ignored")


def test_a_model_without_bos_is_refused(go: Go, tmp_path: Path):
    options = {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "x"), **options)
    with pytest.raises(StageError, match=r"x\.model has no BOS"):
        go({}, model=str(tmp_path / "x.model"), size=300)


def test_a_url_with_credentials_is_refused_without_showing_it():
    with pytest.raises(ValidationError, match="must carry no credentials") as error:
        Config(model="https://user:hunter2@host/x.model")
    assert "hunter2" not in str(error.value)


def test_the_official_tokenizer_is_imported_whole(go: Go, shared_data: Path):
    path = shared_data / "tokenizers" / "fineweb_1024_bpe.model"
    report, folder = go({}, model=str(path))
    assert (folder / "tokenizer.model").read_bytes() == path.read_bytes()
    assert report["pieces"] == 1024
