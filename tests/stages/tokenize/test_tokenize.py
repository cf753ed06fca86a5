"""Token shards: BOS and ids of each document in order, an index that adds up, and nothing wrong let through."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bytes import ByteTable
from model.shards import open_shard, write_shard
from stages.contract import Runtime, StageError
from stages.tokenize import index as index_module
from stages.tokenize.config import Config
from stages.tokenize.index import index
from stages.tokenize.stage import run

BOS = 1
TEXTS = [f"Sentence {i} of a small corpus; it says é and  中 twice. " * (i % 5 + 1) for i in range(200)]
TEXTS[17] = "\u2581"  # nothing is left of it after normalisation

Go = Callable[..., tuple[dict, Path]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    ByteTable.from_sentencepiece(folder / "tokenizer.model").save(folder / "bytes.npy")
    return folder


@pytest.fixture
def go(tmp_path: Path, runtime: Runtime, tokenizer: Path) -> Go:
    """Run the stage: (report, folder of shards)."""
    number = 0

    def run_stage(documents: Path, workers: int = 1, tokenizer: Path = tokenizer) -> tuple[dict, Path]:
        nonlocal number
        number += 1
        out = tmp_path / f"out{number}"
        out.mkdir()
        inputs = {"documents": documents, "tokenizer": tokenizer}
        return run(Config(), inputs, out, replace(runtime, workers=workers)), out / "shards"

    return run_stage


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    table = pa.table({"id": [f"d{i}" for i in range(len(TEXTS))], "text": TEXTS})
    pq.write_table(table, folder / "00007.parquet", row_group_size=13)
    return folder


def test_every_document_is_bos_and_its_ids_in_order(go: Go, documents: Path, tokenizer: Path):
    report, folder = go(documents)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    assert sorted(f.name for f in folder.iterdir()) == ["00007.bin", "00007.index.parquet"]
    expected = [i for text in TEXTS for i in (BOS, *pieces.encode(text))]
    assert open_shard(folder / "00007.bin", pieces.vocab_size()).tolist() == expected
    assert report["tokens"] == len(expected)
    assert report["documents"] == len(TEXTS)


def test_the_index_finds_each_document_and_counts_its_bytes(go: Go, documents: Path, tokenizer: Path):
    report, folder = go(documents)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    tokens = open_shard(folder / "00007.bin")
    rows = pq.read_table(folder / "00007.index.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"d{i}" for i in range(len(TEXTS))]
    for row, text in zip(rows, TEXTS, strict=True):
        first, *ids = tokens[row["start"] : row["start"] + row["tokens"]].tolist()
        decoded = pieces.decode(ids)
        assert first == BOS
        assert decoded == pieces.decode(pieces.encode(text))
        assert (row["bytes"], row["raw_bytes"]) == (len(decoded.encode()), len(text.encode()))
    assert rows[17]["tokens"] == 1 or rows[17]["bytes"] == 0
    assert report["bytes"] == sum(row["bytes"] for row in rows)
    assert report["raw_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert report["bytes_per_token"] == pytest.approx(report["bytes"] / report["tokens"])


def test_workers_do_not_change_a_byte(go: Go, documents: Path):
    results = [go(documents, workers) for workers in (1, 3, 1)]
    contents = [{f.name: f.read_bytes() for f in folder.iterdir()} for _, folder in results]
    assert contents[0] == contents[1] == contents[2]
    assert results[0][0] == results[1][0]


def test_a_published_shard_passes_through_verified(go: Go, tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    ids = np.array([40, 41, BOS, 50, 51, 52, BOS, BOS, 60], dtype=np.uint16)  # it starts inside a document
    write_shard(folder / "00003.bin", ids)
    report, shards = go(folder)
    assert (shards / "00003.bin").read_bytes() == (folder / "00003.bin").read_bytes()
    rows = pq.read_table(shards / "00003.index.parquet").to_pylist()
    assert [(row["start"], row["tokens"]) for row in rows] == [(0, 2), (2, 4), (6, 1), (7, 2)]
    assert {row["id"] for row in rows} == {row["raw_bytes"] for row in rows} == {None}
    assert (report["documents"], report["tokens"], report["raw_bytes"]) == (4, 9, None)


def test_a_shard_of_another_vocabulary_is_refused(go: Go, tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_shard(folder / "00000.bin", np.array([BOS, 5, 330], dtype=np.uint16))
    with pytest.raises(StageError, match=r"size 330; 00000\.bin has 330 at token 2: use the tokenizer that wrote it"):
        go(folder)


def test_a_damaged_shard_is_refused(go: Go, tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_shard(folder / "00000.bin", np.array([BOS, 5, 6], dtype=np.uint16))
    raw = (folder / "00000.bin").read_bytes()
    (folder / "00000.bin").write_bytes(raw[:-2])
    with pytest.raises(StageError, match="truncated"):
        go(folder)


@pytest.mark.parametrize("names", [(), ("a.parquet", "b.parquet"), ("a.txt",)])
def test_one_shard_at_a_time(go: Go, tmp_path: Path, names: tuple[str, ...]):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(StageError, match="one document or token shard at a time"):
        go(folder)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 20), max_size=60), block=st.integers(1, 25))
def test_the_index_adds_up_however_it_is_cut_into_blocks(ids: list[int], block: int):
    rng = np.random.default_rng(3)
    table = ByteTable(
        base=np.where(np.arange(21) == BOS, 0, rng.integers(0, 9, 21)).astype(np.int32),
        leading_space=rng.random(21) < 0.5,
        boundary=np.arange(21) < 4,
    )
    tokens = np.array(ids, dtype=np.uint16)
    before = index_module.BLOCK_TOKENS
    index_module.BLOCK_TOKENS = block
    try:
        starts, sizes, sums = index(tokens, BOS, table)
    finally:
        index_module.BLOCK_TOKENS = before
    assert starts.tolist() == [i for i, token in enumerate(ids) if i == 0 or token == BOS]
    assert sizes.sum() == len(ids)
    for start, size, total in zip(starts, sizes, sums, strict=True):
        stream = np.array(ids[start - 1 if start else 0 : start + size])
        if start == 0:
            stream = np.concatenate([[BOS], stream])
        assert total == table.target_bytes(stream[:-1], stream[1:]).sum()
