"""Document shards: Parquet files of about equal text, the same bytes for the same documents."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_BYTES = 4 << 20  # text that a reader of a shard holds at once
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


class DocumentShards:
    """Writes documents to `folder`/00000.parquet, 00001.parquet, ... of about `shard_bytes` text each."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.shards = 0
        self._writer: pq.ParquetWriter | None = None
        self._ids: list[str] = []
        self._texts: list[bytes] = []
        self._group_bytes = 0
        self._written_bytes = 0

    def add(self, name: str, text: bytes) -> None:
        """Append one document; `text` is valid UTF-8."""
        self._ids.append(name)
        self._texts.append(text)
        self._group_bytes += len(text)
        if self._written_bytes + self._group_bytes >= self.shard_bytes:
            self.close()
        elif self._group_bytes >= ROW_GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Finish the shard at hand."""
        self._write_group()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._written_bytes = 0

    def _write_group(self) -> None:
        if not self._texts:
            return
        if self._writer is None:
            # Every option that changes bytes is stated; what is left depends on pyarrow's version alone.
            self._writer = pq.ParquetWriter(
                self.folder / f"{self.shards:05d}.parquet",
                SCHEMA,
                version="2.6",
                data_page_version="1.0",
                compression="zstd",
                compression_level=3,
                use_dictionary=False,
                write_statistics=False,
                store_schema=False,
            )
            self.shards += 1
        texts = pa.array(self._texts, type=pa.large_binary()).cast(pa.large_string()).cast(pa.string())
        group = pa.record_batch([pa.array(self._ids, type=pa.string()), texts], schema=SCHEMA)
        self._writer.write_batch(group)
        self._written_bytes += self._group_bytes
        self._ids, self._texts, self._group_bytes = [], [], 0
