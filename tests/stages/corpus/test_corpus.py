"""The stage: splits, duplicates, limits, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.contract import Runtime, StageError
from stages.corpus.config import Config
from stages.corpus.stage import run

TEXTS = [f"document number {i}" for i in range(400)]


def source(folder: Path, texts: list[str], name: str = "a.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def documents(folder: Path) -> list[str]:
    return [t for file in sorted(folder.iterdir()) for t in pq.read_table(file).column("text").to_pylist()]


@pytest.fixture
def corpus(tmp_path: Path, runtime: Runtime):
    """Run the stage: (report, train documents, val documents)."""
    number = 0

    def go(**config) -> tuple[dict, list[str], list[str]]:
        nonlocal number
        number += 1
        out = tmp_path / f"out{number}"
        out.mkdir()
        report = run(Config(**config), {}, out, runtime)
        return report, documents(out / "train"), documents(out / "val")

    return go


def test_the_split_is_by_content_and_keeps_the_order(corpus, tmp_path: Path):
    report, train, val = corpus(source=source(tmp_path, TEXTS), val_fraction=0.2)
    assert sorted(train + val) == sorted(TEXTS)
    assert [t for t in TEXTS if t in set(train)] == train
    assert [t for t in TEXTS if t in set(val)] == val
    assert 40 < len(val) < 120
    _, _, reversed_val = corpus(source=source(tmp_path, TEXTS[::-1], "b.jsonl"), val_fraction=0.2)
    assert reversed_val == val[::-1]
    assert report["train"]["documents"] == len(train)
    assert report["val"]["bytes"] == sum(map(len, val))


def test_every_form_and_place_of_a_corpus_gives_the_same_bytes(tmp_path: Path, runtime: Runtime):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet", row_group_size=7)
    source(tmp_path, TEXTS[:150], "b-0.jsonl")
    source(tmp_path, TEXTS[150:], "b-1.jsonl")
    with fsspec.open("memory://corpus-stage/a.jsonl.gz", "wb", compression="gzip") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    contents = []
    for number, url in enumerate([f"{tmp_path}/a.parquet", f"{tmp_path}/b-*.jsonl", "memory://corpus-stage"]):
        out = tmp_path / f"out{number}"
        out.mkdir()
        run(Config(source=url, shard_bytes=4096), {}, out, runtime)
        contents.append({str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) > 2
    assert not any(str(tmp_path).encode() in raw for raw in contents[0].values())


def test_duplicates_and_empty_documents_are_dropped_and_counted(corpus, tmp_path: Path):
    url = source(tmp_path, [*TEXTS, *TEXTS[:30], "", " \n\t"])
    report, train, val = corpus(source=url)
    assert sorted(train + val) == sorted(TEXTS)
    assert report["train"]["duplicates"] + report["val"]["duplicates"] == 30
    assert report["train"]["empty"] + report["val"]["empty"] == 2


def test_a_document_of_both_sources_stays_in_val(corpus, tmp_path: Path):
    train_url = source(tmp_path, TEXTS[:300])
    val_url = source(tmp_path, [*TEXTS[290:], TEXTS[399]], "val.jsonl")
    report, train, val = corpus(source=train_url, val_source=val_url)
    assert train == TEXTS[:290]
    assert val == TEXTS[290:]
    assert (report["train"]["duplicates"], report["val"]["duplicates"]) == (10, 1)


def test_the_first_documents_can_be_val_as_in_the_challenge(corpus, tmp_path: Path):
    url = source(tmp_path, [*TEXTS, TEXTS[3]])
    _, train, val = corpus(source=url, val_documents=50)
    assert (val, train) == (TEXTS[:50], TEXTS[50:])
    report, train, val = corpus(source=url, val_documents=50, duplicates="keep")
    assert (val, train) == (TEXTS[:50], [*TEXTS[50:], TEXTS[3]])
    assert report["train"]["duplicates"] == 1


def test_max_documents_limits_what_is_read_of_the_source(corpus, tmp_path: Path):
    _, train, val = corpus(source=source(tmp_path, TEXTS), max_documents=100, val_fraction=0.3)
    assert sorted(train + val) == sorted(TEXTS[:100])
    val_url = source(tmp_path, TEXTS[200:], "val.jsonl")
    _, train, val = corpus(source=source(tmp_path, TEXTS), val_source=val_url, max_documents=100)
    assert (len(train), len(val)) == (100, 200)


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_an_empty_corpus_is_refused(corpus, tmp_path: Path, texts: list[str]):
    with pytest.raises(StageError, match="has none with text"):
        corpus(source=source(tmp_path, texts))


def test_an_empty_split_is_refused(corpus, tmp_path: Path):
    with pytest.raises(StageError, match="all 1 went to the other split and none to val"):
        corpus(source=source(tmp_path, TEXTS[:1]), val_fraction=0.001)
    with pytest.raises(StageError, match="none to train"):
        corpus(source=source(tmp_path, TEXTS), val_source=source(tmp_path, TEXTS, "b.jsonl"))


def test_a_missing_source_of_val_is_told_before_anything_is_read(corpus, tmp_path: Path):
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b"{")
    with pytest.raises(StageError, match=r"there is none at .*nowhere\.jsonl"):
        corpus(source=str(broken), val_source=f"{tmp_path}/nowhere.jsonl")


def test_progress_reaches_its_total(tmp_path: Path, runtime: Runtime):
    from dataclasses import replace

    out = tmp_path / "out"
    out.mkdir()
    told = tmp_path / "progress.jsonl"
    run(Config(source=source(tmp_path, TEXTS)), {}, out, replace(runtime, progress=told))
    last = json.loads(told.read_text().splitlines()[-1])
    assert (last["done"], last["unit"], last["documents"]) == (last["total"], "B", 400)
    assert last["total"] == (tmp_path / "a.jsonl").stat().st_size


def test_a_url_with_credentials_is_refused_by_the_configuration_without_showing_it():
    with pytest.raises(ValidationError, match="must carry no credentials") as error:
        Config(source="https://user:hunter2@host/x.jsonl")
    assert "hunter2" not in str(error.value)


def test_a_relative_path_means_the_users_folder_wherever_the_stage_runs(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(source="texts/*.txt", val_source="s3://bucket/x")
    assert (config.source, config.val_source) == (f"{tmp_path}/texts/*.txt", "s3://bucket/x")
    assert Config().source == Config(source="embedded").source == "embedded"


@pytest.mark.parametrize(
    "config",
    [
        {"source": "a.jsonl", "val_documents": 5, "val_source": "b.jsonl"},
        {"val_documents": 5},
        {"source": "x/*.bin", "format": "shards", "max_documents": 5},
        {"format": "shards"},
        {"source": ""},
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: dict):
    with pytest.raises(ValidationError):
        Config(**config)
