"""Readers: every form gives the same documents, and damage is named with its place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract import StageError
from stages.corpus import readers
from stages.corpus.sources import list_files

TEXTS = ["one", "two\nlines \u2028 here", "", "drei ü 中文 🙂", "a\0b", " "]


def read(path: Path, field: str = "text", form: str = "auto") -> list[str]:
    told: list[int] = []
    [file] = list_files(str(path), form)
    texts = [text.decode() for text in readers.documents(file, field, told.append)]
    assert sum(told) == path.stat().st_size or path.suffix == ".parquet"
    return texts


def jsonl(texts: list[str], end: str = "\n") -> bytes:
    return ("\n".join(json.dumps({"src": "x", "text": text}, ensure_ascii=False) for text in texts) + end).encode()


@pytest.mark.parametrize("end", ["\n", "", "\n\n  \n"])
def test_jsonl_gives_its_documents_in_order_plain_or_compressed(tmp_path: Path, end: str):
    raw = jsonl(TEXTS, end)
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw[:40]) + gzip.compress(raw[40:]))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(raw[:40]) + zstandard.compress(raw[40:]))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        assert read(tmp_path / name) == TEXTS


@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(max_size=20), max_size=8), chunk=st.integers(1, 30))
def test_where_chunks_end_does_not_matter(tmp_path_factory: pytest.TempPathFactory, texts: list[str], chunk: int):
    path = tmp_path_factory.mktemp("chunks") / "a.jsonl"
    path.write_bytes(jsonl(texts) if texts else b"")
    before = readers.CHUNK_BYTES
    readers.CHUNK_BYTES = chunk
    try:
        assert read(path) == texts
    finally:
        readers.CHUNK_BYTES = before


def test_a_text_file_is_one_document(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xc3\xbc\n")
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"three"))
    assert read(tmp_path / "a.txt") == ["one\ntwo ü\n"]
    assert read(tmp_path / "b.txt.zst") == ["three"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_gives_its_column_in_order(tmp_path: Path, kind: pa.DataType):
    column = pa.array([*TEXTS, None]).cast(kind)
    table = pa.table({"n": list(range(7)), "body": column})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet", "body") == [*TEXTS, ""]


def test_a_missing_column_lists_the_columns(tmp_path: Path):
    pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(
        StageError, match=r"column 'text'; a\.parquet has the columns body, url; set corpus\.text_field"
    ):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"url": 1, "body": 2}\n')
    with pytest.raises(StageError, match=r"a\.jsonl line 2 has fields body, url; set corpus\.text_field"):
        read(tmp_path / "a.jsonl")


def test_a_column_that_is_no_text_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(StageError, match="holds int64"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": 3}\n')
    with pytest.raises(StageError, match="a int there"):
        read(tmp_path / "a.jsonl")


def test_text_that_is_not_utf8_is_named_with_its_place(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"0123\xff")
    with pytest.raises(StageError, match=r"a\.txt is not at byte 4"):
        read(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n\n{"text": "\xe9"}\n')
    with pytest.raises(StageError, match=r"a\.jsonl is not at byte 25 \(line 3\)"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x\\ud800"}\n')
    with pytest.raises(StageError, match=r"b\.jsonl is not at line 1 \(a lone surrogate, character 1"):
        read(tmp_path / "b.jsonl")
    raw = pa.array([b"fine", b"ab\xff"], type=pa.binary())
    column = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(StageError, match=r"a\.parquet is not at byte 2 of row 1"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("line", [b"{", b"[1]", b"nul", b'"x"'])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + line + b"\n")
    with pytest.raises(StageError, match=r"one JSON object; a\.jsonl line 2"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_compressed_file_that_ends_early_is_no_shorter_file(tmp_path: Path, ending: str, pack):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(jsonl(["x" * 50] * 100))[:-6])
    with pytest.raises(StageError, match="truncated"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(StageError, match="truncated"):
        read(path)
    path.write_bytes(b"this is no archive")
    with pytest.raises(StageError, match=r"a\.jsonl.* is damaged"):
        read(path)


def test_damaged_parquet_is_named(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(StageError, match=r"a\.parquet is no readable Parquet file"):
        read(tmp_path / "a.parquet")


def test_a_document_too_long_for_a_column_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 64)
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x" * 200]))
    (tmp_path / "a.txt").write_bytes(b"x" * 200)
    for name in ("a.jsonl", "a.txt"):
        with pytest.raises(StageError, match=f"at most 100 bytes.*{name}"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str):
    """64 MB of documents pass through less than 16 MB of Python memory and Arrow memory each."""
    path = tmp_path / name
    text = "word " * 2_000
    if name == "a.parquet":
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
            for i in range(64):
                writer.write_table(pa.table({"text": [f"{i} {j} {text}" for j in range(100)]}))
    else:
        pack = gzip.compress if name.endswith("gz") else zstandard.compress
        path.write_bytes(b"".join(pack(jsonl([f"{i} {j} {text}" for j in range(100)])) for i in range(64)))
    [file] = list_files(str(path), "auto")
    arrow_before = pa.total_allocated_bytes()
    arrow_peak = 0
    tracemalloc.start()
    try:
        size = 0
        for document in readers.documents(file, "text", lambda _: None):
            size += len(document)
            arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - arrow_before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 64_000_000
    assert peak < 16_000_000
    assert arrow_peak < 16_000_000
