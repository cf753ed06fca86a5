"""Document shards: sizes, order, and bytes that depend on the documents alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus import output
from stages.corpus.output import DocumentShards


def write(folder: Path, texts: list[str], shard_bytes: int) -> list[Path]:
    folder.mkdir()
    shards = DocumentShards(folder, shard_bytes)
    for i, text in enumerate(texts):
        shards.add(f"d{i}", text.encode())
    shards.close()
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"{i:05d}.parquet" for i in range(shards.shards)]
    return files


@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(max_size=30), max_size=30), shard_bytes=st.integers(1, 100), group=st.integers(1, 40))
def test_documents_come_back_in_order_in_shards_of_about_their_size(tmp_path_factory, texts, shard_bytes, group):
    before = output.ROW_GROUP_BYTES
    output.ROW_GROUP_BYTES = group
    try:
        files = write(tmp_path_factory.mktemp("out") / "a", texts, shard_bytes)
    finally:
        output.ROW_GROUP_BYTES = before
    tables = [pq.read_table(f) for f in files]
    assert [t for table in tables for t in table.column("text").to_pylist()] == texts
    assert [i for table in tables for i in table.column("id").to_pylist()] == [f"d{i}" for i in range(len(texts))]
    for table in tables[:-1]:
        sizes = [len(t.encode()) for t in table.column("text").to_pylist()]
        assert sum(sizes) >= shard_bytes > sum(sizes[:-1])


def test_row_groups_bound_what_a_reader_holds(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(output, "ROW_GROUP_BYTES", 1000)
    [file] = write(tmp_path / "a", ["x" * 100] * 95, 1 << 20)
    metadata = pq.read_metadata(file)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10] * 9 + [5]


def test_the_same_documents_give_the_same_bytes(tmp_path: Path):
    texts = [f"document {i} " * (i % 50) for i in range(500)]
    first, second = (write(tmp_path / name, texts, 20_000) for name in ("a", "b"))
    assert len(first) > 3
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
