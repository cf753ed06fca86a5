"""An even sample of the train documents, in bounded memory and without reading what it does not need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from stages.contract import StageError

MAX_ROW_GROUPS = 64  # about 4 MiB of text each, evenly spaced: more would not make the sample more even, only slower
MAX_SENTENCE_BYTES = 4192  # SentencePiece's trainer skips anything longer


@dataclass
class Sample:
    """What a sample took."""

    documents: int = 0
    bytes: int = 0


def sentences(folder: Path, sample_bytes: int, taken: Sample) -> Iterator[str]:
    """Lines of about `sample_bytes` of documents, spread evenly over the shards of `folder`; counts into `taken`."""
    for text in _documents(folder, sample_bytes):
        taken.documents += 1
        taken.bytes += len(text.encode())
        yield from _sentences(text)


def _documents(folder: Path, sample_bytes: int) -> Iterator[str]:
    groups = _row_groups(folder)
    step = max(1.0, len(groups) / MAX_ROW_GROUPS)
    chosen = [groups[int(i * step)] for i in range(min(len(groups), MAX_ROW_GROUPS))]
    share = sample_bytes / max(1, sum(size for _, _, size in chosen))
    seen = taken = 0
    for path, group, _ in chosen:
        for text in pq.ParquetFile(path).read_row_group(group, columns=["text"]).column(0).to_pylist():
            size = len(text.encode())
            if share >= 1 or taken <= share * seen:
                taken += size
                yield text
            seen += size


def _row_groups(folder: Path) -> list[tuple[Path, int, int]]:
    """(file, row group, bytes of text, about) of every shard in order."""
    groups: list[tuple[Path, int, int]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".bin":
            raise StageError(
                f"a vocabulary is trained on documents; {path.name} holds tokens; name the tokenizer that wrote them "
                f"in vocabulary.model"
            )
        metadata = pq.read_metadata(path)
        column = metadata.schema.names.index("text")
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            # Parquet stores each string behind 4 bytes of length; what else is no text is a header per page.
            groups.append((path, i, group.column(column).total_uncompressed_size - 4 * group.num_rows))
    return groups


def _sentences(text: str) -> Iterator[str]:
    """The lines of a document, long ones cut at spaces; NUL, which the trainer does not take, becomes a space."""
    for line in text.replace("\0", " ").splitlines():
        words: list[str] = []
        size = 0
        for word in line.split(" ") if len(line.encode()) > MAX_SENTENCE_BYTES else (line,):
            grown = size + len(word.encode()) + 1
            if words and grown > MAX_SENTENCE_BYTES:
                yield " ".join(words)
                words, grown = [], len(word.encode()) + 1
            words.append(word)
            size = grown
        if sentence := " ".join(words).strip():
            yield sentence
