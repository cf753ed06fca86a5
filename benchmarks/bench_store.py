"""What does the store cost at 1,000 and at 100,000 records? Only listing may grow with them.

`get` is one read of one file; a publish is its bytes, hashed while they are written, and a few flushes; a first fetch
hashes, later ones compare a stamp. The large store is made once per session, by writing the records' files directly:
their text is made by the store's own code. Set FAIRWAY_BENCH_RECORDS to change its size.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.documents import dump_document
from artifacts.record import File, Record, record_to_json
from artifacts.records import record_path
from artifacts.store import Store

MANY = int(os.environ.get("FAIRWAY_BENCH_RECORDS", "100000"))
ROOT = Path(__file__).parents[1]


def key_of(index: int) -> str:
    return hashlib.sha256(str(index).encode()).hexdigest()


def fill(folder: Path, count: int) -> Store:
    """A store with `count` records of a realistic size (two kilobytes), without the objects' bytes."""
    store = Store.open(folder)
    store.write_run({"id": "1"})
    components = {"code": {f"stages.train.module{n}": key_of(n) for n in range(20)}, "config": {"lr": 0.02}}
    for stage in ("tokenize", "train", "evaluate"):
        (folder / "records" / stage).mkdir(parents=True)
    for index in range(count):
        stage = ("tokenize", "train", "evaluate")[index % 3]
        files = (File("raw/weights.bin", key_of(-index), 1000),)
        record = Record(stage, "", key_of(index), files, components, {"bpb": 1.2}, {}, {"published": str(index)})
        (folder / record_path(stage, record.key)).write_bytes(dump_document(record_to_json(record))[0])
    return store


@pytest.fixture(scope="session", params=[1000, MANY], ids=lambda count: f"{count} records")
def filled(request, tmp_path_factory):
    """(store, number of records)"""
    return fill(tmp_path_factory.mktemp("store") / "store", request.param), request.param


def test_get(benchmark, filled):
    store, count = filled
    indices = itertools.cycle(range(0, count, 997))
    benchmark(lambda: store.get(("tokenize", "train", "evaluate")[(i := next(indices)) % 3], key_of(i)))


def test_get_of_what_is_not_there(benchmark, filled):
    store, _ = filled
    assert benchmark(lambda: store.get("train", key_of(-1))) is None


def test_open(benchmark, filled):
    store, _ = filled
    benchmark(lambda: Store.open(store.url))


def test_a_publish_of_one_small_file_with_its_name(benchmark, filled, tmp_path):
    store, _ = filled
    numbers = itertools.count(10**9)
    (tmp_path / "raw").mkdir()

    def publish() -> None:
        key = key_of(next(numbers))
        (tmp_path / "raw" / "x").write_text(key)
        store.publish(stage="weigh", key=key, folder=tmp_path, components={}, report={}, inputs={})
        store.assign_name("recipe", "scale", int(key[:7], 16), "weigh", "", key)

    benchmark(publish)


def test_list_every_key(benchmark, filled):
    store, count = filled
    listed = benchmark(lambda: sum(1 for _ in store.records()))
    assert listed >= count


def test_resolve_a_key_prefix(benchmark, filled):
    store, _ = filled
    benchmark(lambda: store.resolve(f"train/{key_of(1)[:12]}"))


def test_gc_of_everything_dry(benchmark, filled):
    store, _ = filled
    benchmark.pedantic(lambda: store.gc(grace_s=-1), rounds=2 if benchmark.enabled else 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(store, record of four files of 64 MB, folder)"""
    folder = tmp_path_factory.mktemp("large")
    (folder / "out" / "shards").mkdir(parents=True)
    for index in range(4):
        (folder / "out" / "shards" / f"{index}.bin").write_bytes(os.urandom(1 << 20) * 64)
    store = Store.open(folder / "store")
    made = store.publish(stage="tokenize", key=key_of(0), folder=folder / "out", components={}, report={}, inputs={})
    return store, made.record, folder


def test_a_publish_of_256_MB(benchmark, large):
    store, _, folder = large
    numbers = itertools.count(1)
    blank = {"components": {}, "report": {}, "inputs": {}}
    benchmark.pedantic(
        lambda: store.publish(stage="tokenize", key=key_of(next(numbers)), folder=folder / "out", **blank),
        rounds=5 if benchmark.enabled else 1,
    )
    benchmark.extra_info["bytes"] = 4 * (64 << 20)


@pytest.mark.parametrize("verify", ["full", "stamp"])
def test_a_fetch_of_256_MB(benchmark, large, verify):
    store, record, folder = large
    benchmark(lambda: store.fetch(record.files, folder / "in", verify=verify))


def test_a_lease_taken_and_released(benchmark, filled):
    store, _ = filled

    def take() -> None:
        with store.lease(key_of(1)):
            pass

    benchmark(take)


def test_a_process_that_opens_a_store_and_gets_a_record(benchmark, filled):
    store, _ = filled
    script = f"from artifacts.store import Store; Store.open({store.url!r}).get('train', {key_of(1)!r}).id"
    benchmark(lambda: subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT))
