"""Sources -> unique documents, each in train or val.

Val comes first wherever the two could meet, so a document that is in both is dropped from train and not from val.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from stages.contract import Runtime, StageError
from stages.corpus import embedded
from stages.corpus.config import EMBEDDED, Config
from stages.corpus.digests import Digests, digest_text
from stages.corpus.output import DocumentShards
from stages.corpus.readers import documents
from stages.corpus.sources import SourceFile, list_files

REPORT_EVERY = 256  # documents between progress lines, at most


@dataclass(frozen=True)
class Document:
    """One document on its way to a split."""

    text: bytes  # UTF-8
    digest: bytes
    split: str  # "train" or "val"
    id: str


@dataclass
class Counts:
    """What became of the documents of one split."""

    documents: int = 0
    bytes: int = 0
    duplicates: int = 0
    empty: int = 0


class Meter:
    """Progress in stored bytes of all the files."""

    def __init__(self, total: int, runtime: Runtime) -> None:
        self.total = total
        self.done = 0
        self._runtime = runtime

    def advance(self, count: int) -> None:
        """Note `count` more bytes."""
        self.done += count

    def tell(self, counts: dict[str, Counts]) -> None:
        """Write a progress line."""
        written = sum(c.documents for c in counts.values())
        self._runtime.report_progress(self.done, max(self.total, self.done, 1), "B", documents=written)


def build(config: Config, folders: dict[str, Path], runtime: Runtime) -> dict[str, Any]:
    """Write the shards of both splits; returns the report. Raises StageError."""
    shards = {split: DocumentShards(folder, config.shard_bytes) for split, folder in folders.items()}
    counts = {split: Counts() for split in folders}
    meter, stream = _documents(config, runtime)
    seen = Digests()
    for number, document in enumerate(stream):
        count = counts[document.split]
        if not document.text.strip():
            count.empty += 1
            continue
        if not seen.add(document.digest):
            count.duplicates += 1
            if config.duplicates == "drop":
                continue
        count.documents += 1
        count.bytes += len(document.text)
        shards[document.split].add(document.id, document.text)
        if number % REPORT_EVERY == 0:
            meter.tell(counts)
    for writer in shards.values():
        writer.close()
    meter.tell(counts)
    _refuse_empty(counts, config)
    return {split: {**vars(counts[split]), "shards": shards[split].shards} for split in folders}


def _refuse_empty(counts: dict[str, Counts], config: Config) -> None:
    total = sum(c.documents for c in counts.values())
    if not total:
        empty = sum(c.empty for c in counts.values())
        raise StageError(
            f"a corpus has documents; {config.source} has none with text ({empty:,} empty ones); name another source"
        )
    for split, count in counts.items():
        if not count.documents:
            raise StageError(
                f"train and val both need documents; all {total:,} went to the other split and none to {split}; use "
                f"more documents, another val_fraction or a val_source"
            )


def _documents(config: Config, runtime: Runtime) -> tuple[Meter, Iterator[Document]]:
    """Every document with its split, val first where `source` does not hold both."""
    meter = Meter(0, runtime)
    train = _source(config.source, config, meter, config.max_documents)
    if config.val_source:
        val = _source(config.val_source, config, meter, 0)
        return meter, chain((_as(d, "val") for d in val), (_as(d, "train") for d in train))
    if config.val_documents:
        return meter, chain(
            (_as(d, "val") for d in islice(train, config.val_documents)), (_as(d, "train") for d in train)
        )
    if config.source == EMBEDDED:
        return meter, train
    threshold = int(config.val_fraction * (1 << 64))
    return meter, (_as(d, "val" if int.from_bytes(d.digest[:8], "big") < threshold else "train") for d in train)


def _as(document: Document, split: str) -> Document:
    return Document(document.text, document.digest, split, document.id)


def _source(url: str, config: Config, meter: Meter, most: int) -> Iterator[Document]:
    """Documents of one source. Files are listed at once, so that a wrong URL is told before anything is read."""
    if url == EMBEDDED:
        return _embedded(config, meter, most)
    files = list_files(url, config.format)
    if files[0].kind == "shards":
        raise StageError(f"{url} holds token shards, the other source documents; both must hold the same")
    meter.total += sum(file.bytes for file in files)
    return islice(_read(files, config.text_field, meter), most or None)


def _read(files: list[SourceFile], text_field: str, meter: Meter) -> Iterator[Document]:
    for file in files:
        for text in documents(file, text_field, meter.advance):
            digest = digest_text(text)
            yield Document(text, digest, "", digest.hex())


def _embedded(config: Config, meter: Meter, most: int) -> Iterator[Document]:
    modules = embedded.extract()[: most or None]
    val = embedded.val_groups(modules, config.val_fraction)
    meter.total += sum(len(m.text) for m in modules)
    for module in modules:
        text = module.text.encode()
        meter.advance(len(module.text))
        yield Document(text, digest_text(text), "val" if module.group in val else "train", module.name)
