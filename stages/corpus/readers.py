"""Documents of a file, one by one in the file's order, in memory that does not grow with the file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from stages.contract import StageError
from stages.corpus.sources import SourceFile

CHUNK_BYTES = 1 << 20
COMPRESSED_CHUNK_BYTES = 1 << 16  # compressed bytes may unfold a thousandfold
MAX_DOCUMENT_BYTES = 1 << 30  # a Parquet column of strings cannot hold much more
BATCH_ROWS = 1024

Advance = Callable[[int], None]  # told how many stored bytes have been read


def documents(file: SourceFile, text_field: str, advance: Advance) -> Iterator[bytes]:
    """UTF-8 bytes of each document of `file`. Raises StageError that names the file and the place in it."""
    with _named(file):
        if file.kind == "text":
            yield _text(file, advance)
        elif file.kind == "jsonl":
            yield from _jsonl(file, text_field, advance)
        else:
            yield from _parquet(file, text_field, advance)


@contextmanager
def _named(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (zlib.error, zstandard.ZstdError) as error:
        raise StageError(f"{file.name} is damaged: its {file.compression} stream says {error}; get it again") from error
    except FileNotFoundError as error:
        raise StageError(f"a source must not change while it is read; {file.name} is gone; run again") from error
    except pa.ArrowInvalid as error:
        raise StageError(f"{file.name} is no readable Parquet file: {error}; get it again") from error


def _chunks(file: SourceFile, advance: Advance) -> Iterator[bytes]:
    with file.fs.open(file.path, "rb") as stream:
        size = COMPRESSED_CHUNK_BYTES if file.compression else CHUNK_BYTES
        stored = _told(iter(lambda: stream.read(size), b""), advance)
        yield from _unfolded(stored, file) if file.compression else stored


def _told(chunks: Iterator[bytes], advance: Advance) -> Iterator[bytes]:
    for chunk in chunks:
        advance(len(chunk))
        yield chunk


def _unfolded(chunks: Iterator[bytes], file: SourceFile) -> Iterator[bytes]:
    """The bytes of one or more gzip members or zstd frames; one that ends early is an error, not an end."""

    def start() -> Any:
        if file.compression == "gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    engine = start()
    for chunk in chunks:
        rest = chunk
        while rest:
            if engine.eof:
                engine = start()
            yield engine.decompress(rest)
            rest = engine.unused_data if engine.eof else b""
    if not engine.eof:
        raise StageError(f"{file.name} is truncated: its {file.compression} stream has no end; get it again")


def _lines(chunks: Iterator[bytes], file: SourceFile) -> Iterator[bytes]:
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pending.append(first)
        size += len(first)
        if others:
            yield b"".join(pending)
            yield from others[:-1]
            pending, size = [others[-1]], len(others[-1])
        _refuse_long(size, file)
    if size:
        yield b"".join(pending)


def _refuse_long(size: int, file: SourceFile) -> None:
    if size > MAX_DOCUMENT_BYTES:
        raise StageError(
            f"a document has at most {MAX_DOCUMENT_BYTES:,} bytes, a text file being one document and a JSONL line "
            f"another; {file.name} has a longer one; split it, or set corpus.format"
        )


def _text(file: SourceFile, advance: Advance) -> bytes:
    parts: list[bytes] = []
    size = 0
    for part in _chunks(file, advance):
        parts.append(part)
        size += len(part)
        _refuse_long(size, file)
    raw = b"".join(parts)
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(file, f"byte {error.start:,}") from error
    return raw


def _not_utf8(file: SourceFile, place: str) -> StageError:
    return StageError(f"text is UTF-8; {file.name} is not at {place}; convert it (iconv -t UTF-8) or leave it out")


def _jsonl(file: SourceFile, text_field: str, advance: Advance) -> Iterator[bytes]:
    offset = 0
    for number, line in enumerate(_lines(_chunks(file, advance), file), start=1):
        if line.strip():
            yield _json_text(line, text_field, file, number, offset)
        offset += len(line) + 1


def _json_text(line: bytes, text_field: str, file: SourceFile, number: int, offset: int) -> bytes:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _not_utf8(file, f"byte {offset + error.start:,} (line {number:,})") from error
    except ValueError as error:
        raise StageError(f"a line of JSONL is one JSON object; {file.name} line {number:,}: {error}") from error
    if not isinstance(record, dict):
        raise StageError(
            f"a line of JSONL is one JSON object; {file.name} line {number:,} is a {type(record).__name__}"
        )
    text = record.get(text_field)
    if not isinstance(text, str):
        has = f"fields {', '.join(sorted(record)) or 'none'}" if text is None else f"a {type(text).__name__} there"
        raise StageError(
            f"every line has its text in the field {text_field!r}; {file.name} line {number:,} has {has}; set "
            f"corpus.text_field"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise _not_utf8(file, f"line {number:,} (a lone surrogate, character {error.start:,} of the text)") from error


def _parquet(file: SourceFile, text_field: str, advance: Advance) -> Iterator[bytes]:
    with file.fs.open(file.path, "rb") as stream:
        table = pq.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False)
        schema = table.schema_arrow
        if text_field not in schema.names:
            raise StageError(
                f"documents are in the column {text_field!r}; {file.name} has the columns {', '.join(schema.names)}; "
                f"set corpus.text_field"
            )
        _refuse_other_types(schema.field(text_field).type, text_field, file)
        row = 0
        told = 0
        rows = max(1, table.metadata.num_rows)
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[text_field], use_threads=False):
            yield from _utf8(batch.column(0), file, row)
            row += len(batch)
            advance(file.bytes * row // rows - told)
            told = file.bytes * row // rows


def _refuse_other_types(kind: pa.DataType, text_field: str, file: SourceFile) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise StageError(
            f"documents are strings; the column {text_field!r} of {file.name} holds {kind}; set corpus.text_field"
        )


def _utf8(column: pa.Array, file: SourceFile, first_row: int) -> Iterator[bytes]:
    """The texts of a column as bytes; a null is an empty document. Parquet itself does not check that text is UTF-8."""
    raw = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, text in enumerate(raw, start=first_row):
            try:
                (text or b"").decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(file, f"byte {error.start:,} of row {row:,}") from error
        raise
    return (text or b"" for text in raw)
