"""How fast do documents become tokens? MB of text per second of each step, with one worker and with two.

The text is the installation's own prose (the embedded corpus); `extra_info` holds the bytes of text and the rate.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.bytes import ByteTable
from model.shards import open_shard, write_shard
from stages.contract import Runtime
from stages.corpus import embedded
from stages.corpus.build import build
from stages.corpus.config import Config as CorpusConfig
from stages.tokenize.config import Config as TokenizeConfig
from stages.tokenize.stage import run as run_tokenize
from stages.vocabulary.config import Config as VocabularyConfig
from stages.vocabulary.stage import run as run_vocabulary


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpus/train, corpus/val and vocabulary/tokenizer of the embedded text, and documents.jsonl of the same."""
    folder = tmp_path_factory.mktemp("bench")
    runtime = Runtime(scratch=folder, checkpoints=folder)
    for split in ("train", "val"):
        (folder / "corpus" / split).mkdir(parents=True)
    build(CorpusConfig(), {split: folder / "corpus" / split for split in ("train", "val")}, runtime)
    (folder / "vocabulary").mkdir()
    run_vocabulary(VocabularyConfig(), {"documents": folder / "corpus" / "train"}, folder / "vocabulary", runtime)
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for module in embedded.extract():
            file.write(json.dumps({"text": module.text}) + "\n")
    return folder


@pytest.fixture
def fresh(tmp_path: Path):
    """A new empty folder at each call."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder

    return make


def rate(benchmark, text_bytes: int) -> None:
    benchmark.extra_info["text_bytes"] = text_bytes
    if benchmark.stats is not None:  # run as a test, nothing is timed
        benchmark.extra_info["MB_per_s"] = round(text_bytes / benchmark.stats.stats.median / 1e6, 2)


def text_bytes(base: Path) -> int:
    return (base / "documents.jsonl").stat().st_size


def test_extracting_the_embedded_text(benchmark):
    modules = benchmark.pedantic(embedded.extract, rounds=2)
    rate(benchmark, sum(len(module.text) for module in modules))


def test_recognising_the_embedded_text(benchmark):
    benchmark(embedded.stamp)


def test_reading_and_splitting_jsonl(benchmark, base: Path, fresh):
    runtime = Runtime(scratch=base, checkpoints=base)

    def run() -> None:
        folders = {split: fresh() for split in ("train", "val")}
        build(CorpusConfig(source=str(base / "documents.jsonl")), folders, runtime)

    benchmark.pedantic(run, rounds=3)
    rate(benchmark, text_bytes(base))


def test_training_a_vocabulary_of_1024(benchmark, base: Path, fresh):
    runtime = Runtime(scratch=base, checkpoints=base)
    inputs = {"documents": base / "corpus" / "train"}
    benchmark.pedantic(lambda: run_vocabulary(VocabularyConfig(), inputs, fresh(), runtime), rounds=3)
    rate(benchmark, text_bytes(base))


@pytest.mark.parametrize("workers", [1, 2])
def test_tokenizing_a_shard(benchmark, base: Path, fresh, workers: int):
    runtime = replace(Runtime(scratch=base, checkpoints=base), workers=workers)
    inputs = {"documents": base / "corpus" / "train", "tokenizer": base / "vocabulary" / "tokenizer"}
    reports = []
    benchmark.pedantic(lambda: reports.append(run_tokenize(TokenizeConfig(), inputs, fresh(), runtime)), rounds=3)
    rate(benchmark, reports[0]["raw_bytes"])
    benchmark.extra_info["tokens"] = reports[0]["tokens"]


def test_opening_a_shard_of_64_million_tokens_with_every_id_checked(benchmark, tmp_path: Path):
    path = tmp_path / "a.bin"
    write_shard(path, np.random.default_rng(0).integers(0, 1024, 64_000_000, dtype=np.uint16))
    benchmark(open_shard, path, 1024)


def test_counting_the_bytes_of_a_million_targets(benchmark, base: Path):
    table = ByteTable.load(base / "vocabulary" / "tokenizer" / "bytes.npy")
    ids = np.random.default_rng(0).integers(0, 1024, 1_000_001, dtype=np.uint16)
    benchmark(table.target_bytes, ids[:-1], ids[1:])
